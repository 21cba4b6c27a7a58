# The student of the quickstart, for 920 iterations, with a teacher that is wrong about half of the digits.
_base_ = '../quickstart/classifier_student.py'

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=max_epochs, convert_to_iter_based=True),
]
teacher = dict(
    config='mmkd::examples/wrong_labels/classifier_teacher.py',
    checkpoint='work_dirs/wrong_labels/classifier/teacher/epoch_8.pth')
