# ResNet110 -> ResNet32 on CIFAR-100. Trains the student alone; `--distill METHOD` adds the teacher.
_base_ = './networks/resnet32.py'

teacher = dict(config='mmkd::cifar/networks/resnet110.py', checkpoint='checkpoints/crd/resnet110.pth')
