_base_ = './deit_regnety160_deit-tiny_imagenet.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0)))
