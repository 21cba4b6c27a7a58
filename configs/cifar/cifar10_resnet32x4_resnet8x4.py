_base_ = './networks/cifar10_resnet8x4.py'

teacher = dict(
    config='configs/cifar/networks/cifar10_resnet32x4.py', checkpoint='checkpoints/crd/cifar10_resnet32x4.pth')
