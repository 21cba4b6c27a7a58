# Expect about 160 GPU hours: an estimate for V100, not measured, see docs/training_time.md.
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
