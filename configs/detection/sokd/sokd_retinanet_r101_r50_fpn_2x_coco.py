# Expect about 170 GPU hours: an estimate for V100, not measured, see docs/training_time.md.
_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(sokd=dict(type='mmkd.SOKD', temperature=4.0, weight=1.0)))
