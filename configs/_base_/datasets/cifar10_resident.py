# CIFAR-10 from folders of images, which tools/dataset_converters/cifar10_folder.py writes. All images are
# held in memory.
dataset_type = 'CustomDataset'
data_root = 'data/cifar10'
# Files are loaded as BGR.
data_preprocessor = dict(
    num_classes=10, mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255], to_rgb=True)

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    # Only full batches: losses of relations between samples always compare equally many.
    drop_last=True,
    sampler=dict(type='mmkd.ViewSampler', shuffle=True),
    collate_fn=dict(type='mmkd.as_batch'),
    dataset=dict(
        type='mmkd.ResidentDataset',
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            data_prefix='train',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]),
        crop=32,
        padding=4,
        flip=0.5))
# Read like any other images, because the student's checkpoint stores the dataloader for tests.
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix='test',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
