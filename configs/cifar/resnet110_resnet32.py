_base_ = './networks/resnet32.py'

teacher = dict(config='configs/cifar/networks/resnet110.py', checkpoint='checkpoints/crd/resnet110.pth')
