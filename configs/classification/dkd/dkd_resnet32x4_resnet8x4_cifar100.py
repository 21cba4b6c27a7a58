# DKD (Zhao et al., CVPR 2022) with the settings released for this pair: alpha = 1, beta = 8, temperature 4.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# As released, the weight grows linearly from 0 in the first 20 of 240 epochs: the default for classifiers.
model = dict(methods=dict(dkd=dict(type='mmkd.DKD')))
