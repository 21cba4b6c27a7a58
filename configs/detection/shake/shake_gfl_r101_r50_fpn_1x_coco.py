# Expect about 75 GPU hours: an estimate for V100, not measured, see docs/training_time.md.
_base_ = '../../_base_/pairs/gfl_r101_r50_fpn_1x_coco.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
