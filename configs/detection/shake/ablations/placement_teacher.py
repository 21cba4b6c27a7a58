# SHAKE's released form: trainable layers on the frozen teacher, standardized logits, MSE, labels for P.
# Expect about 170 GPU hours: an estimate for V100, not measured, see docs/training_time.md.
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(placement='teacher')))
