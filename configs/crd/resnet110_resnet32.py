_base_ = './networks/resnet32.py'

teacher = dict(config='configs/crd/networks/resnet110.py', checkpoint='checkpoints/crd/resnet110.pth')
