# SOKD in CRD's schedule; in its own: sokd_wrn_40_2_wrn_16_2_cifar100_200e.py.
_base_ = '../crd/resnet32x4_resnet8x4.py'

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    methods=dict(sokd=dict(type='mmkd.SOKD', temperature=4.0, weight=1.0)))
