# PKD from a DINO: the levels of strides 8 to 64, which both necks have.
_base_ = '../../_base_/pairs/dino_faster-rcnn_r50_fpn_2x_coco.py'

model = dict(methods=dict(pkd=dict(type='mmkd.PKD', weight=6.0)))
