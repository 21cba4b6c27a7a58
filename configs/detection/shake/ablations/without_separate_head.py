# Ablation of SHAKE: student and proxy share one head. With P = S, KL(sg S||P) and KL(sg P||S) vanish,
# KL(T||P) is KL(T||S), and what remains is KD.
_base_ = '../../kd/kd_faster-rcnn_r101_r50_fpn_2x_coco.py'
