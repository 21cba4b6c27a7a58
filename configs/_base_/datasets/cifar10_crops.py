# CIFAR-10 as crops of 24 x 24 pixels, which take half the time of whole images: random crops and flips in
# training, the center in validation.
_base_ = './cifar10_resident.py'

train_dataloader = dict(batch_size=64, dataset=dict(crop=24, padding=0))
val_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='CenterCrop', crop_size=24),
    dict(type='PackInputs'),
]))
test_dataloader = val_dataloader
