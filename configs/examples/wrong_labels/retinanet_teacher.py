# The RetinaNet teacher of ../digits_few, trained on wrong labels of the digits 5 to 9.
_base_ = '../digits_few/retinanet_teacher.py'

train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='mmkd.WrongLabels', classes=[5, 6, 7, 8, 9]),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs'),
]))
