_base_ = './classifier_teacher.py'

# ResNet-8 with half of the teacher's channels, trained half as long: 460 iterations.
model = dict(backbone=dict(depth=8, stem_channels=8, base_channels=12), head=dict(in_channels=48))
teacher = dict(
    config='configs/quickstart/classifier_teacher.py',
    checkpoint='work_dirs/quickstart_classification/classifier/teacher/epoch_20.pth')
# For tools/analysis_tools/compare_methods.py: methods have their own settings, untuned, but first stages of
# training must fit into the budget.
comparison = {name: dict(first_stage_epochs=2) for name in ('ab', 'fsp', 'ft')}

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2, end=max_epochs, convert_to_iter_based=True),
]
