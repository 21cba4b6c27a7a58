# NST (Huang and Wang, 2017) with the weight of CRD's benchmark: 50.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(nst=dict(type='mmkd.NST')))
