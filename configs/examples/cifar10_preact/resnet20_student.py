# PreAct-ResNet-20 on CIFAR-10 in the setting of Intel's Distiller, with PreAct-ResNet-32 as the teacher.
_base_ = './resnet32_teacher.py'

model = dict(backbone=dict(depth=20))

teacher = dict(
    config='mmkd::examples/cifar10_preact/resnet32_teacher.py',
    checkpoint='work_dirs/cifar10_preact/resnet20/teacher/epoch_200.pth')
# Settings for tools/analysis_tools/compare_methods.py: Distiller's temperature and weights.
comparison = dict(kd=dict(temperature=5.0, weight=0.7, student_task=0.3))
