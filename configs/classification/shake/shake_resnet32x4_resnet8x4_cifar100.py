# SHAKE as in the paper's text (Li and Jin, NeurIPS 2022): the shadow head on the student.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
