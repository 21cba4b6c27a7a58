# Deformable DETR R101 -> R50, COCO, 50 epochs: 16 GPUs with 2 images each (lr 2e-4).
# MMDetection's figure: student alone 44.3 AP. It has no R101; train the teacher first
# (configs/detection/baselines/).
_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmkd::detection/baselines/deformable-detr_r101_16xb2-50e_coco.py',
        checkpoint='work_dirs/deformable-detr_r101_16xb2-50e_coco/epoch_50.pth'),
    methods=dict())
