# KD (Hinton et al., 2015), of queries that are matched by the assigner.
_base_ = '../../_base_/pairs/dino_swin-l_r50_12e_coco.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD')))
