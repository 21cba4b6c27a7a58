# KDSVD (Lee et al., ECCV 2018) with weight 1.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(kdsvd=dict(type='mmkd.KDSVD')))
