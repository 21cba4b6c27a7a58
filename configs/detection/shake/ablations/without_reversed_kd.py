# Ablation of SHAKE: without reversed distillation, KL(sg S||P).
# Expect about 160 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(reversed_weight=0.0)))
