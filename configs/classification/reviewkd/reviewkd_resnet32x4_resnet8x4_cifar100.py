# ReviewKD (Chen et al., CVPR 2021).
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# The weight released for this pair; it grows linearly from 0 in the first 20 epochs of 782 iterations.
model = dict(methods=dict(reviewkd=dict(type='mmkd.ReviewKD', weight=5.0)))
custom_hooks = [dict(type='mmkd.WeightScheduleHook', methods='reviewkd', warmup=15640)]
