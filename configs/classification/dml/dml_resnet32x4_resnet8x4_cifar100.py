# DML (Zhang et al., CVPR 2018).
_base_ = '../../cifar/resnet32x4_resnet8x4.py'

# The peer is built like the pair's teacher and starts from random weights.
model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    methods=dict(
        dml=dict(type='mmkd.DML', config={{_base_.teacher.config}}, temperature=4.0, weight=1.0)))
