# SHAKE as in the paper's text (Li and Jin, NeurIPS 2022).
_base_ = '../../_base_/pairs/resnet50_mobilenetv1_imagenet.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
