# Ablation of SHAKE: a shadow head of four convolutions and one fully connected layer, instead of two fully
# connected layers.
# Expect about 160 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(head=dict(type='Shared4Conv1FCBBoxHead'))))
