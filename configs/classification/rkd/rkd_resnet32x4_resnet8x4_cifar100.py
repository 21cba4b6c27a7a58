# RKD (Park et al., CVPR 2019) with the weight of CRD's benchmark: 1, with 25 for distances and 50 for
# angles.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(rkd=dict(type='mmkd.RKD')))
