# DeiT and SHAKE together: RegNetY-16GF -> DeiT-Ti, ImageNet, 300 epochs.
_base_ = './deit_regnety160_deit-tiny_imagenet.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
