# Ablation of SHAKE: the student also learns from the teacher directly, by KL(T||S).
# Expect about 160 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../shake_faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD', temperature=4.0, weight=1.0)))
