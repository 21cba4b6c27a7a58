_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(
    methods=dict(
        shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0),
        reviewkd=dict(type='mmkd.ReviewKD', weight=5.0)))
# As in ../reviewkd: weight and warm-up are ReviewKD's released ones.
custom_hooks = [dict(type='mmkd.WeightScheduleHook', methods='reviewkd', warmup=15640)]
