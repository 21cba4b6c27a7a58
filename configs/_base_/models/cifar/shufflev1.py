# ShuffleNetV1 of CRD's benchmark: 949,258 parameters with 100 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.CRDShuffleNetV1'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=960,
        # PyTorch's default initialization, as in the benchmark.
        init_cfg=None,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5)))
