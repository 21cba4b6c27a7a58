_base_ = './networks/resnet20.py'

teacher = dict(config='configs/cifar/networks/resnet56.py', checkpoint='checkpoints/crd/resnet56.pth')
