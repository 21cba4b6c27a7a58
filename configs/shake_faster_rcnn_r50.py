_base_ = './shake/shake_faster-rcnn_r101_r50_fpn_2x_coco.py'
