# DINO R50 -> Faster R-CNN R50, COCO, 2x: 8 GPUs with 2 images each (lr 0.02; else `--auto-scale-lr`).
# MMDetection's figures: teacher 49.0 AP, student alone 38.4 AP. Their logits cannot be compared; features at
# the neck and final detections can.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/dino/'
        'dino-4scale_r50_8xb2-12e_coco/'
        'dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth'),
    methods=dict())
