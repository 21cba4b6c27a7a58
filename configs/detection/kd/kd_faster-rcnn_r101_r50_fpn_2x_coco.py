# KD (Hinton et al., 2015).
# Expect about 135 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD', temperature=4.0, weight=1.0)))
