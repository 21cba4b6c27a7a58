# CrossKD (Wang et al., CVPR 2024) with the settings released for RetinaNet.
_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(crosskd=dict(type='mmkd.CrossKD')))
