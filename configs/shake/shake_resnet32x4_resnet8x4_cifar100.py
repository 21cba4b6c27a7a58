# SHAKE as in the paper's text.
_base_ = '../crd/resnet32x4_resnet8x4.py'

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
