# WRN-40-2 -> WRN-16-2 on CIFAR-100. Trains the student alone; `--distill METHOD` adds the teacher.
_base_ = './networks/wrn_16_2.py'

teacher = dict(config='mmkd::cifar/networks/wrn_40_2.py', checkpoint='checkpoints/crd/wrn_40_2.pth')
