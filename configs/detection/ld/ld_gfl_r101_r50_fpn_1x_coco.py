# LD (Zheng et al., CVPR 2022).
_base_ = '../../_base_/pairs/gfl_r101_r50_fpn_1x_coco.py'

model = dict(methods=dict(ld=dict(type='mmkd.LD')))
