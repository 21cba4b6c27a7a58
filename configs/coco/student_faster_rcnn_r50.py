# The student of shake_faster_rcnn_r50.py alone, for comparison: MMDetection's Faster R-CNN R50.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'
