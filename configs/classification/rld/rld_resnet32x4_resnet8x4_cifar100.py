# RLD (Sun et al., 2024) with the settings in the released README: alpha = 1, beta = 8, both temperatures 4.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# As released, the weight grows linearly from 0 in the first 20 of 240 epochs: the default for classifiers.
model = dict(methods=dict(rld=dict(type='mmkd.RLD')))
