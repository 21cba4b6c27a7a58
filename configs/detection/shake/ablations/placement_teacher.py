# SHAKE as in the released code: the shadow head on the frozen teacher, standardized logits, MSE
# instead of KL from the teacher to the shadow head, and labels for the shadow head.
# Expect about 170 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(shake=dict(placement='teacher')))
