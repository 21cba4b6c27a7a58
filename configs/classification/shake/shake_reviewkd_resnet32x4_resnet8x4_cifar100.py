# SHAKE and ReviewKD together.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(
    methods=dict(
        shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0),
        reviewkd=dict(type='mmkd.ReviewKD', weight=5.0)))
# The weight and its warm-up are those released for ReviewKD, as in ../reviewkd/.
custom_hooks = [dict(type='mmkd.WeightScheduleHook', methods='reviewkd', warmup=15640)]
