# The quickstart's teacher: Faster R-CNN with half of ResNet-18's channels.
_base_ = [
    '../../_base_/models/faster_rcnn_r18_fpn64.py',
    '../../_base_/datasets/digits_detection.py',
    'mmdet::_base_/default_runtime.py',
]

# Half the channels are enough for digits, and two CPU cores train the detector in minutes.
model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))

# An epoch has 75 iterations. The teacher is trained for much longer than the students.
max_epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[6], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)

default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=1, max_keep_ckpts=1))
log_processor = dict(window_size=25)
randomness = dict(seed=0)
