# OFD (Heo et al., ICCV 2019) with the weight released for CIFAR-100: 1e-3.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(ofd=dict(type='mmkd.OFD')))
