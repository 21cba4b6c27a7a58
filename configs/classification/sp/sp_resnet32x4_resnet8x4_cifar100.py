# SP (Tung and Mori, ICCV 2019) with the weight of CRD's benchmark: 3000.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(sp=dict(type='mmkd.SP')))
