# Conditional DETR R101 -> R50, COCO, 50 epochs: 8 GPUs with 2 images each (lr 1e-4).
# MMDetection's figure: student alone 40.9 AP. It has no R101; train the teacher first
# (configs/detection/baselines/).
_base_ = 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmkd::detection/baselines/conditional-detr_r101_8xb2-50e_coco.py',
        checkpoint='work_dirs/conditional-detr_r101_8xb2-50e_coco/epoch_50.pth'),
    methods=dict())
