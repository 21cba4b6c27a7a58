_base_ = './networks/mobilenetv2.py'

teacher = dict(config='configs/cifar/networks/vgg13.py', checkpoint='checkpoints/crd/vgg13.pth')
