# VGG13 of CRD's benchmark: 9,462,180 parameters with 100 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.CRDVGG', depth=13),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5)))
