# The student of the overfitting check, with SHAKE.
_base_ = './student.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmkd::examples/overfit/teacher.py', checkpoint='work_dirs/overfit/teacher/epoch_5.pth'),
    methods=dict(shake=dict(type='mmkd.SHAKE', temperature=1.0, weight=1.0)))
