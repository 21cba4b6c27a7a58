_base_ = './networks/vgg8.py'

teacher = dict(config='configs/cifar/networks/vgg13.py', checkpoint='checkpoints/crd/vgg13.pth')
