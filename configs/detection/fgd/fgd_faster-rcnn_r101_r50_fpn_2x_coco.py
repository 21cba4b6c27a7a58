# FGD (Yang et al., CVPR 2022) with the weights released for Faster R-CNN: the defaults for two stages.
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(fgd=dict(type='mmkd.FGD')))
