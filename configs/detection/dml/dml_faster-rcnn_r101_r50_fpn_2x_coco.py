# DML (Zhang et al., CVPR 2018).
# Expect about 200 V100 GPU hours (estimated, not measured: docs/training_time.md).
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

# The peer is built like the pair's teacher and starts from ImageNet weights, as the student does.
model = dict(
    teacher=None,
    methods=dict(
        dml=dict(type='mmkd.DML', config={{_base_.model.teacher.config}}, temperature=4.0, weight=1.0)))
