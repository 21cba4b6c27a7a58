# Ablation of SHAKE: the shadow head has a whole network of its own, built like the student.
# Expect about 250 GPU hours: an estimate for V100, not measured, see docs/training_time.md.
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(placement='alone')))
