# SHAKE and ReviewKD together; ReviewKD with the weight released for this pair.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(
    methods=dict(
        shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0),
        reviewkd=dict(type='mmkd.ReviewKD', weight=5.0)))
