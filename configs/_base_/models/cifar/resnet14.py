# ResNet14 of CRD's benchmark: 181,108 parameters with 100 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.CRDResNet', depth=14),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=64,
        # PyTorch's default initialization, as in the benchmark.
        init_cfg=None,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5)))
