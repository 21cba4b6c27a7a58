# SHAKE on images mixed by CutMix.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(
    student=dict(
        train_cfg=dict(augments=dict(type='CutMix', alpha=1.0)), head=dict(loss=dict(use_soft=True))),
    methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
