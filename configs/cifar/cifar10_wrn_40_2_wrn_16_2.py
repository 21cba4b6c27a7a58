_base_ = './networks/cifar10_wrn_16_2.py'

teacher = dict(
    config='configs/cifar/networks/cifar10_wrn_40_2.py', checkpoint='checkpoints/crd/cifar10_wrn_40_2.pth')
