# FitNet (Romero et al., ICLR 2015) with the weight of CRD's benchmark: 100.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(fitnet=dict(type='mmkd.FitNet')))
