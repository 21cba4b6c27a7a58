# ResNet56 -> ResNet20 on CIFAR-100. Trains the student alone; `--distill METHOD` adds the teacher.
_base_ = './networks/resnet20.py'

teacher = dict(config='mmkd::cifar/networks/resnet56.py', checkpoint='checkpoints/crd/resnet56.pth')
