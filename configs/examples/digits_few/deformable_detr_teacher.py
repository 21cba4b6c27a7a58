# The Deformable DETR teacher: half of ResNet-18's channels, trained on 6000 images.
_base_ = [
    '../../_base_/models/deformable_detr_r18_d64.py',
    '../../_base_/datasets/digits_detection_few.py',
    '../../_base_/schedules/digits_few.py',
]

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[64, 128, 256]))
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=1e-4), clip_grad=dict(max_norm=0.1, norm_type=2))
