# The student of the overfitting check: the teacher with half the channels in the backbone.
_base_ = './teacher.py'

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))
