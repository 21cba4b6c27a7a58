# DIST (Huang et al., NeurIPS 2022) with the settings released for CIFAR-100: weight 2, temperature 4.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(dist=dict(type='mmkd.DIST', temperature=4.0)))
