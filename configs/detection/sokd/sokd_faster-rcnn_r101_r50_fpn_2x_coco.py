# SOKD (Liu et al., BMVC 2021), with the bridge on the frozen features of the teacher.
# Expect about 170 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(sokd=dict(type='mmkd.SOKD', temperature=4.0, weight=1.0)))
