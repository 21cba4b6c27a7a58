# WTTM (Zheng and Yang, ICLR 2024). The paper chooses gamma and weight for each pair; these are the defaults,
# from the example in the released README (gamma = 0.2, weight 4).
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(wttm=dict(type='mmkd.WTTM')))
