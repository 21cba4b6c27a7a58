# Conditional DETR R101, COCO, 50 epochs: 8 GPUs with 2 images each, as MMDetection's R50.
_base_ = 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'

model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')))
