# SHAKE as its released code has it: the shadow head on the teacher, all losses on standardised logits.
_base_ = '../crd/resnet32x4_resnet8x4.py'

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    methods=dict(shake=dict(type='mmkd.SHAKE', placement='teacher', standardize_task=True)))
