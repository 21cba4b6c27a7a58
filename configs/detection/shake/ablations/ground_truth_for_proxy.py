# Ablation of SHAKE: the shadow head learns from the labels, too.
# Expect about 160 GPU hours: an estimate for V100, not measured, see docs/training_time.md.
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(proxy_task=1.0)))
