# LSKD (Sun et al., CVPR 2024) with the settings released for this pair: temperature 2 and weight 9.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# The weight 0.1 of the labels is the default for classifiers.
model = dict(methods=dict(lskd=dict(type='mmkd.LSKD')))
