# The Faster R-CNN teacher: half of ResNet-18's channels, trained on 6000 images.
_base_ = [
    '../../_base_/models/faster_rcnn_r18_fpn64.py',
    '../../_base_/datasets/digits_detection_few.py',
    '../../_base_/schedules/digits_few.py',
]

# Digits are 5 to 30 px large and taller than wide. On a fifth level, the map would have two positions a side.
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=32, num_outs=4),
    rpn_head=dict(
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(scales=[2], ratios=[1.0, 2.0], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=128)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=100)))
