# SHAKE and CRD together.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(
    methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0), crd=dict(type='mmkd.CRD')))
