_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

# As released: the weight grows from 0 in the first 20 epochs of 782 iterations.
model = dict(methods=dict(dkd=dict(type='mmkd.DKD')))
custom_hooks = [dict(type='mmkd.WeightScheduleHook', methods='dkd', warmup=15640)]
