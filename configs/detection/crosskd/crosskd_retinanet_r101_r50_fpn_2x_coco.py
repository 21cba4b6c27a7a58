_base_ = '../../_base_/pairs/retinanet_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(crosskd=dict(type='mmkd.CrossKD')))
