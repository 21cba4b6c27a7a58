# PKT (Passalis and Tefas, ECCV 2018) with the weight of CRD's benchmark: 30000.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(pkt=dict(type='mmkd.PKT')))
