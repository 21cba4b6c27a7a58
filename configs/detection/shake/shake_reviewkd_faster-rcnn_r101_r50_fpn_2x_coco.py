# SHAKE and ReviewKD together.
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(
    methods=dict(
        shake=dict(type='mmkd.SHAKE', temperature=4.0, weight=1.0), reviewkd=dict(type='mmkd.ReviewKD')))
