# SHAKE as in the paper's text (Li and Jin, NeurIPS 2022): the shadow head on the student.
# Expect about 370 A100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../../_base_/pairs/rtmdet_l_s_300e_coco.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
