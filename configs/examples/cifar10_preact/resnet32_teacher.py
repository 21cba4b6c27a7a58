# PreAct-ResNet-32 on CIFAR-10 in the setting of Intel's Distiller.
_base_ = ['../../_base_/datasets/cifar10_resident.py', '../../_base_/classification_runtime.py']

# Distiller's mean and standard deviation.
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmkd.PreActResNet', depth=32),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        init_cfg=None,  # PyTorch's default initialization
        loss=dict(type='CrossEntropyLoss')))

train_dataloader = dict(drop_last=False)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=200)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=2e-4))
# Divided by 10 after 80 and 120 epochs, and by 5 after 160.
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[80, 120], gamma=0.1),
    dict(type='MultiStepLR', by_epoch=True, milestones=[160], gamma=0.2),
]
auto_scale_lr = dict(enable=False, base_batch_size=128)
randomness = dict(seed=0)
