# Class logits by KD, and boxes by their GIoU.
# No weight is published for boxes, so they are balanced with the task by default.
_base_ = '../../_base_/pairs/faster-rcnn_r101_r50_fpn_2x_coco.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD'), boxdistill=dict(type='mmkd.BoxDistill')))
