# SHAKE (Li and Jin, NeurIPS 2022): shadow class branches on the states of the student's decoder.
_base_ = '../../_base_/pairs/deformable-detr_r101_r50_50e_coco.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE')))
