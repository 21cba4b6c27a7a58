# KD with a tuned teacher (KD† of Li and Jin, NeurIPS 2022): a copy of the teacher learns from the student.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(kdtuned=dict(type='mmkd.KDTuned', temperature=4.0, weight=1.0)))
