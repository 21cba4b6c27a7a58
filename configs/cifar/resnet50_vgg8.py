# ResNet50 -> VGG8 on CIFAR-100. Trains the student alone; `--distill METHOD` adds the teacher.
_base_ = './networks/vgg8.py'

teacher = dict(config='mmkd::cifar/networks/resnet50.py', checkpoint='checkpoints/crd/resnet50.pth')
