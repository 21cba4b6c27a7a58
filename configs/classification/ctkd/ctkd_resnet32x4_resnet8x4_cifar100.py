# CTKD (Li et al., AAAI 2023) with the released settings: a global temperature, weight 0.9.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# The weight 0.1 of the labels is the default for classifiers.
model = dict(methods=dict(ctkd=dict(type='mmkd.CTKD')))
