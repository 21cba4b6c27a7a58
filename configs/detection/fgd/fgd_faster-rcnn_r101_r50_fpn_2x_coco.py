# FGD (Yang et al., CVPR 2022) with the weights released for Faster R-CNN.
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(
    methods=dict(
        fgd=dict(type='mmkd.FGD', foreground=5e-5, background=2.5e-5, attention=5e-5, global_=5e-7)))
