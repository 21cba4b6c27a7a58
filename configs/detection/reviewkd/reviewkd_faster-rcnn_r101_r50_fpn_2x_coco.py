# ReviewKD (Chen et al., CVPR 2021).
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(reviewkd=dict(type='mmkd.ReviewKD')))
