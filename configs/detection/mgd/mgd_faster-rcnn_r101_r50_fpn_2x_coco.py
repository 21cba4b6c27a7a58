# MGD (Yang et al., ECCV 2022) with the settings released for two-stage detectors.
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(mgd=dict(type='mmkd.MGD', weight=5e-7, mask_ratio=0.45)))
