# Expect about 370 GPU hours: an estimate for A100, not measured, see docs/training_time.md.
_base_ = '../../_base_/pairs/rtmdet_l_s_300e_coco.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
