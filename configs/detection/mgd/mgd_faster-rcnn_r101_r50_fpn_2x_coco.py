# MGD (Yang et al., ECCV 2022) with the settings released for Faster R-CNN: the defaults for two stages.
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(mgd=dict(type='mmkd.MGD')))
