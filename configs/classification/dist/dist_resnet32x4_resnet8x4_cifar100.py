# DIST (Huang et al., NeurIPS 2022) with the settings of its released loss: temperature 1, beta = gamma = 1.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(dist=dict(type='mmkd.DIST')))
