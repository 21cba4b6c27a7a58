# MobileNetV2 of CRD's benchmark: 812,836 parameters with 100 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.CRDMobileNetV2'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5)))
