# Ablation of SHAKE: the shadow head learns from the student only; there is no teacher.
# Expect about 110 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(teacher=None, methods=dict(shake=dict(teacher_to_proxy=0.0)))
