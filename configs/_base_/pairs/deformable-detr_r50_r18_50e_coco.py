# Deformable DETR R50 -> R18, COCO, 50 epochs: 16 GPUs with 2 images each (lr 2e-4).
# MMDetection's figure: teacher 44.3 AP. It has no R18; the student alone is in configs/detection/baselines/.
_base_ = '../../detection/baselines/deformable-detr_r18_16xb2-50e_coco.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/'
        'deformable-detr_r50_16xb2-50e_coco/'
        'deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth'),
    methods=dict())
