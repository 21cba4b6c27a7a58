# SOKD (Liu et al., BMVC 2021).
_base_ = '../../_base_/pairs/resnet50_mobilenetv1_imagenet.py'

model = dict(methods=dict(sokd=dict(type='mmkd.SOKD', temperature=4.0, weight=1.0)))
