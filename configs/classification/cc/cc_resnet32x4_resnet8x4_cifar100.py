# CC (Peng et al., ICCV 2019) with the weight of CRD's benchmark: 0.02.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(cc=dict(type='mmkd.CC')))
