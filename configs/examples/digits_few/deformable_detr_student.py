# The Deformable DETR student: a quarter of ResNet-18's channels, trained on 250 images.
_base_ = './deformable_detr_teacher.py'

model = dict(backbone=dict(base_channels=16), neck=dict(in_channels=[32, 64, 128]))

epochs = 30
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
train_dataloader = dict(dataset=dict(indices=250))
default_hooks = dict(checkpoint=dict(interval=10))

teacher = dict(
    config='mmkd::examples/digits_few/deformable_detr_teacher.py',
    checkpoint='work_dirs/digits_few/deformable_detr/teacher/epoch_8.pth')
