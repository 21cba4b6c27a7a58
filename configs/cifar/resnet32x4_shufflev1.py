# ResNet32x4 -> ShuffleNetV1 on CIFAR-100. Trains the student alone; `--distill METHOD` adds the teacher.
_base_ = './networks/shufflev1.py'

teacher = dict(config='mmkd::cifar/networks/resnet32x4.py', checkpoint='checkpoints/crd/resnet32x4.pth')
