# SHAKE as in the paper's text (Li and Jin, NeurIPS 2022): the shadow head on the student.
# Expect about 130 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../../_base_/pairs/fcos_r101_r50_fpn_ms-2x_coco.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
