# MobileNetV2 of full width alone on CIFAR-100: the network of this name in SAKD's released code. The others
# in this folder are those of CRD's benchmark, whose MobileNetV2 has half the width.
_base_ = './mobilenetv2.py'

model = dict(backbone=dict(width=1.0))
