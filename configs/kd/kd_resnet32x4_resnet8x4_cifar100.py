# KD in CRD's protocol: 0.9 KL + 0.1 CE.
_base_ = '../crd/resnet32x4_resnet8x4.py'

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    methods=dict(kd=dict(type='mmkd.KD', temperature=4.0, weight=0.9, student_task=0.1)))
