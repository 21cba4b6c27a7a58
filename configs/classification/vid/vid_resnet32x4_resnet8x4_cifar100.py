# VID (Ahn et al., CVPR 2019) with the weight of CRD's benchmark: 1.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(vid=dict(type='mmkd.VID')))
