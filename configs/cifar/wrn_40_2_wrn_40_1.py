_base_ = './networks/wrn_40_1.py'

teacher = dict(config='configs/cifar/networks/wrn_40_2.py', checkpoint='checkpoints/crd/wrn_40_2.pth')
