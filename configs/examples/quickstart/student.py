# The quickstart's student alone: Faster R-CNN with a quarter of ResNet-18's channels.
_base_ = './teacher.py'

# Half of the teacher's channels in the backbone, trained for 225 iterations.
model = dict(backbone=dict(base_channels=16), neck=dict(in_channels=[16, 32, 64, 128]))

max_epochs = 3
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[2], gamma=0.1),
]
