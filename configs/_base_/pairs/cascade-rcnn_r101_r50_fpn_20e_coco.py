# Cascade R-CNN R101 -> R50, COCO, 20 epochs: 8 GPUs with 2 images each (lr 0.02).
# MMDetection's figures: teacher 42.5 AP, student alone 41.0 AP.
_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_20e_coco.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade-rcnn_r101_fpn_20e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/'
        'cascade_rcnn_r101_fpn_20e_coco/'
        'cascade_rcnn_r101_fpn_20e_coco_bbox_mAP-0.425_20200504_231812-5057dcc5.pth'),
    methods=dict())
