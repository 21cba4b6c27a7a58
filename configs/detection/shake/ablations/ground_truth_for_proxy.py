# Ablation of SHAKE: the shadow head also learns from the labels.
# Expect about 160 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(proxy_task=1.0)))
