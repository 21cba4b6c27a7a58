# The quickstart's pair: a ResNet-18 with half of its channels teaches one with a quarter of them.
_base_ = '../../examples/quickstart/student.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='configs/examples/quickstart/teacher.py',
        checkpoint='work_dirs/quickstart/teacher/epoch_8.pth'),
    methods=dict())
