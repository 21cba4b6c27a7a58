_base_ = './teacher.py'

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))
