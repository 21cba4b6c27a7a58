# The final detections of a DINO as soft ground truth for a Faster R-CNN.
_base_ = '../../_base_/pairs/dino_faster-rcnn_r50_fpn_2x_coco.py'

model = dict(methods=dict(prediction=dict(type='mmkd.PredictionKD')))
