# LD (Zheng et al., CVPR 2022) with the weights released for this pair.
_base_ = '../../_base_/pairs/gfl_r101_r50_fpn_1x_coco.py'

model = dict(methods=dict(ld=dict(type='mmkd.LD', feature_weight=2.0)))
