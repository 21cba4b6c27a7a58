# The quickstart's classifier, teacher: a ResNet-20 with 20 channels in its first stage.
_base_ = ['../../_base_/datasets/digits_classification.py', '../../_base_/classification_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.CRDResNet', depth=20, base_channels=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=80,
        # PyTorch's default initialization; MMPretrain's is so small that standardized logits start as noise.
        init_cfg=None,
        loss=dict(type='CrossEntropyLoss')))

# 46 iterations an epoch.
max_epochs = 8
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2, end=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=64)
default_hooks = dict(logger=dict(interval=23))
randomness = dict(seed=0)
