# The quickstart's pair: Faster R-CNN with half of ResNet-18's channels teaches one with a quarter of them.
_base_ = '../../examples/quickstart/student.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmkd::examples/quickstart/teacher.py',
        checkpoint='work_dirs/quickstart/teacher/epoch_8.pth'),
    methods=dict())
