# CRD (Tian et al., ICLR 2020) with the weight of its benchmark: 0.8.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(crd=dict(type='mmkd.CRD')))
