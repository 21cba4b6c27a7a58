_base_ = './networks/resnet32.py'

teacher = dict(config='configs/cifar/networks/resnet32x4.py', checkpoint='checkpoints/crd/resnet32x4.pth')
