# The quickstart's classifier, teacher, trained on wrong labels of the digits 5 to 9.
_base_ = '../quickstart/classifier_teacher.py'

train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='mmkd.WrongLabels', classes=[5, 6, 7, 8, 9]),
    dict(type='PackInputs'),
]))
