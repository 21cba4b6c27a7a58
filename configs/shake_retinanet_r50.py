# SHAKE for RetinaNet R101 -> R50 on COCO.
_base_ = 'detection/shake/shake_retinanet_r101_r50_fpn_2x_coco.py'
