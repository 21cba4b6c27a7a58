# ResNet32x4 -> ResNet8x4 on CIFAR-100. Trains the student alone; `--distill METHOD` adds the teacher.
_base_ = './networks/resnet8x4.py'

teacher = dict(config='mmkd::cifar/networks/resnet32x4.py', checkpoint='checkpoints/crd/resnet32x4.pth')
