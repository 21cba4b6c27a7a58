# ResNet32x4 -> ResNet8x4, CIFAR-100, 240 epochs: the pair of CRD's benchmark that most papers report.
# CRD's figures: teacher 79.42 % top-1, student alone 72.50 %.
_base_ = '../../cifar/resnet32x4_resnet8x4.py'

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher={{_base_.teacher}},
    methods=dict())
