# VGG16 of CRD's benchmark: 14,774,436 parameters with 100 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.CRDVGG', depth=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5)))
