# MLKD (Jin et al., CVPR 2023) with the released weights, on one view of every image instead of two.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# The weight 0.1 of the labels is the default for classifiers.
model = dict(methods=dict(mlkd=dict(type='mmkd.MLKD')))
