# SOKD (Liu et al., BMVC 2021) in the schedule of CRD's benchmark; sokd_wrn_40_2_wrn_16_2_cifar100_200e.py
# has the schedule of the SOKD paper.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(sokd=dict(type='mmkd.SOKD', temperature=4.0, weight=1.0)))
