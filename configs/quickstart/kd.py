_base_ = './student.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='configs/quickstart/teacher.py',
        checkpoint='work_dirs/quickstart/teacher/epoch_8.pth'),
    methods=dict(kd=dict(type='mmkd.KD', temperature=1.0, weight=1.0)))
