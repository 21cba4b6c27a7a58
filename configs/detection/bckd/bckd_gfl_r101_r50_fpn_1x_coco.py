# BCKD (Yang et al., ICCV 2023) with the released weights: 1 for scores and 4 for boxes.
_base_ = '../../_base_/pairs/gfl_r101_r50_fpn_1x_coco.py'

model = dict(methods=dict(bckd=dict(type='mmkd.BCKD')))
