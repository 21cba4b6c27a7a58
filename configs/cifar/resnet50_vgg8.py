_base_ = './networks/vgg8.py'

teacher = dict(config='configs/cifar/networks/resnet50.py', checkpoint='checkpoints/crd/resnet50.pth')
