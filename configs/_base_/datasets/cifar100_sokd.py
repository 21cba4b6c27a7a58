# CIFAR-100 as in SOKD (Liu et al., BMVC 2021): batches of 128 images, padding by reflection.
_base_ = './cifar100_crd.py'

train_dataloader = dict(
    batch_size=128,
    dataset=dict(pipeline=[
        dict(type='NumpyToPIL'),  # RandomCrop pads with zeros, whatever its padding_mode
        dict(type='torchvision/Pad', padding=4, padding_mode='reflect'),
        dict(type='PILToNumpy'),
        dict(type='RandomCrop', crop_size=32),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ]))
