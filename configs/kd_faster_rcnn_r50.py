_base_ = './detection/kd/kd_faster-rcnn_r101_r50_fpn_2x_coco.py'
