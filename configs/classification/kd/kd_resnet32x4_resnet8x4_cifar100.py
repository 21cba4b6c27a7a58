# KD (Hinton et al., 2015) with the weights of CRD's benchmark: 0.9 KL + 0.1 CE.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD', temperature=4.0, weight=0.9, student_task=0.1)))
