# SAKD (Song et al., IEEE TIP 2022) on top of AT. For any other pair and method:
# tools/train.py configs/cifar/PAIR.py --distill sakd --cfg-options model.methods.sakd.method=METHOD
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(sakd=dict(type='mmkd.SAKD', method='AT', strategy='adaptive')))
