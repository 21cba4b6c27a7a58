# KD (Hinton et al., 2015).
_base_ = '../../_base_/pairs/resnet34_resnet18_imagenet.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD', temperature=4.0, weight=1.0)))
