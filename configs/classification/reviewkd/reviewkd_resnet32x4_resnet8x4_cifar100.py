# ReviewKD (Chen et al., CVPR 2021) with the weight released for this pair.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# As released, the weight grows linearly from 0 in the first 20 of 240 epochs: the default for classifiers.
model = dict(methods=dict(reviewkd=dict(type='mmkd.ReviewKD', weight=5.0)))
