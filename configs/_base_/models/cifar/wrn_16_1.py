# WRN-16-1 of CRD's benchmark: 180,916 parameters with 100 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.CRDWideResNet', depth=16, width=1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=64,
        # As in the benchmark: PyTorch's default initialization for weights, zero for biases.
        init_cfg=dict(
            type='Kaiming', layer='Linear', a=5**0.5, mode='fan_in', nonlinearity='leaky_relu',
            distribution='uniform'),
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5)))
