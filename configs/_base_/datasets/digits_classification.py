# Handwritten digits among clutter, 16 x 16 pixels, 3000 training and 2000 validation images in
# data/digits_cls/{train,val}/<digit>/*.png, which tools/dataset_converters/digits_to_folders.py writes.
dataset_type = 'CustomDataset'
data_root = 'data/digits_cls'
data_preprocessor = dict(num_classes=10, mean=[110.0] * 3, std=[60.0] * 3, to_rgb=True)

pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    # Only full batches: losses of relations between samples always compare 64 of them.
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, data_prefix='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, data_prefix='val', pipeline=pipeline))
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
