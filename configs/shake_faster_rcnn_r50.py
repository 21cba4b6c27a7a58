# SHAKE for Faster R-CNN R101 -> R50 on COCO.
_base_ = 'detection/shake/shake_faster-rcnn_r101_r50_fpn_2x_coco.py'
