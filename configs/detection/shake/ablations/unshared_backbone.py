# Ablation of SHAKE: the proxy is a separate network, built like the student, not a head on the student.
# Expect about 250 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(placement='alone')))
