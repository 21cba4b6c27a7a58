# The quickstart's classifier, student: 276 iterations.
_base_ = './classifier_teacher.py'

# A ResNet-8 with 12 channels in its first stage, where the teacher, a ResNet-20, has 20.
model = dict(backbone=dict(depth=8, stem_channels=8, base_channels=12), head=dict(in_channels=48))
teacher = dict(
    config='mmkd::examples/quickstart/classifier_teacher.py',
    checkpoint='work_dirs/quickstart_classification/teacher/epoch_8.pth')
# Settings for tools/analysis_tools/compare_methods.py: all methods have their published settings,
# untuned, but a first phase of training must fit into six epochs.
comparison = dict(
    ab=dict(first_phase_epochs=2), fsp=dict(first_phase_epochs=2), ft=dict(first_phase_epochs=2))

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=max_epochs, convert_to_iter_based=True),
]
