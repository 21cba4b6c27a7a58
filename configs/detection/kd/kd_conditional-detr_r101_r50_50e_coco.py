# KD (Hinton et al., 2015), of queries that are matched by the assigner.
_base_ = '../../_base_/pairs/conditional-detr_r101_r50_50e_coco.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD')))
