# RTMDet-l -> RTMDet-s, COCO, 300 epochs: 8 GPUs with 32 images each (lr 0.004).
# MMDetection's figures: teacher 51.3 AP, student alone 44.5 AP.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.DetectorDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/'
        'rtmdet_l_8xb32-300e_coco/'
        'rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth'),
    methods=dict())
