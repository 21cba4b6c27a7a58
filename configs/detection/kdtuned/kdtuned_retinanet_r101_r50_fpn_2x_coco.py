# KD with a tuned teacher (KD† of Li and Jin, NeurIPS 2022): a copy of the teacher learns from the student.
# Expect about 180 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(kdtuned=dict(type='mmkd.KDTuned', temperature=4.0, weight=1.0)))
