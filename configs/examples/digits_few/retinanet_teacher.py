# The RetinaNet teacher: half of ResNet-18's channels, trained on 6000 images.
_base_ = [
    '../../_base_/models/retinanet_r18_fpn64.py',
    '../../_base_/datasets/digits_detection_few.py',
    '../../_base_/schedules/digits_few.py',
]

# Digits are 5 to 30 px large and taller than wide; anchors are 8 to 50 px.
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=32, start_level=0, num_outs=4),
    bbox_head=dict(
        in_channels=32,
        feat_channels=32,
        norm_cfg=dict(num_groups=8),
        anchor_generator=dict(octave_base_scale=2, strides=[4, 8, 16, 32])))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
