_base_ = './networks/vgg8.py'

teacher = dict(config='configs/crd/networks/vgg13.py', checkpoint='checkpoints/crd/vgg13.pth')
