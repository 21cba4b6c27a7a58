# CWD (Shu et al., ICCV 2021) on the neck, with MMRazor's weight: 10 at temperature 1.
_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(cwd=dict(type='mmkd.CWD', weight=10.0)))
