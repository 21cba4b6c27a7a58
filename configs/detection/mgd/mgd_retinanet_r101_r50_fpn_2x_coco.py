# MGD (Yang et al., ECCV 2022) with the settings released for RetinaNet: the defaults for dense detectors.
_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(mgd=dict(type='mmkd.MGD')))
