# SOKD in CRD's schedule; in its own: sokd_wrn_40_2_wrn_16_2_cifar100_200e.py.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(sokd=dict(type='mmkd.SOKD', temperature=4.0, weight=1.0)))
