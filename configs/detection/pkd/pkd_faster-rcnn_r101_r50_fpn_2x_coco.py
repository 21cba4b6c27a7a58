# PKD (Cao et al., NeurIPS 2022) on the neck, with the weight of its paper: 6.
# Expect about 135 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(pkd=dict(type='mmkd.PKD', weight=6.0)))
