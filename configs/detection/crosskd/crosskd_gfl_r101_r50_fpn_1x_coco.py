# CrossKD (Wang et al., CVPR 2024) with the settings released for GFL.
_base_ = '../../_base_/pairs/gfl_r101_r50_fpn_1x_coco.py'

model = dict(methods=dict(crosskd=dict(type='mmkd.CrossKD')))
