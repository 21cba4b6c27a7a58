_base_ = '../crd/resnet32x4_resnet8x4.py'

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    methods=dict(kdtuned=dict(type='mmkd.KDTuned', temperature=4.0, weight=1.0)))
