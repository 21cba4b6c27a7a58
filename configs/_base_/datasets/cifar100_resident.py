# CIFAR-100 in the setting of cifar100_crd.py, with all images in GPU memory (in main memory without a GPU),
# see docs/speed_data.md. The student's checkpoint stores the test dataloader, so it stays ordinary.
_base_ = './cifar100_crd.py'

train_dataloader = dict(
    num_workers=0,
    sampler=dict(type='mmkd.ViewSampler'),
    collate_fn=dict(type='mmkd.as_batch'),
    dataset=dict(
        _delete_=True,
        type='mmkd.ResidentDataset',
        dataset=dict(
            type='CIFAR100', data_root='data/cifar100', split='train', pipeline=[dict(type='PackInputs')]),
        crop=32,
        padding=4,
        flip=0.5))
val_dataloader = dict(
    num_workers=0,
    collate_fn=dict(type='mmkd.as_batch'),
    dataset=dict(
        _delete_=True, type='mmkd.ResidentDataset', dataset=_base_.val_dataloader.dataset))
