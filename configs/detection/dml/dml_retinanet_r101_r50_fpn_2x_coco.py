# Expect about 180 GPU hours: an estimate for V100, not measured, see docs/training_time.md.
_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

# The peer is built like the pair's teacher, and starts as the student does: from ImageNet weights.
model = dict(
    teacher=None,
    methods=dict(
        dml=dict(type='mmkd.DML', config={{_base_.model.teacher.config}}, temperature=4.0, weight=1.0)))
