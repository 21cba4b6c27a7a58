# FGD (Yang et al., CVPR 2022) with the weights released for RetinaNet, which are the defaults.
_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(fgd=dict(type='mmkd.FGD')))
