# AT (Zagoruyko and Komodakis, ICLR 2017) with the weight of CRD's benchmark: 1000.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(at=dict(type='mmkd.AT')))
