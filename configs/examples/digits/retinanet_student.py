# The RetinaNet student of the method comparison.
_base_ = './retinanet_teacher.py'

# The teacher with half the channels in the backbone, trained for 375 iterations.
model = dict(backbone=dict(base_channels=16), neck=dict(in_channels=[16, 32, 64, 128]))

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones=[4], gamma=0.1),
]

teacher = dict(
    config='mmkd::examples/digits/retinanet_teacher.py',
    checkpoint='work_dirs/compare_methods/retinanet/teacher/epoch_8.pth')
# Settings for tools/analysis_tools/compare_methods.py, chosen with KD on seeds 100 and 101
# (docs/benchmarks/quickstart.md, docs/benchmarks/sample_weight.md).
comparison = dict(proxies=dict(temperature=1.0, weight=5.0), dml=dict(temperature=1.0))
