# Handwritten digits in 96 x 96 images, 6000 for training and 600 for validation, in COCO's format. Students
# train on the first few hundred of them.
_base_ = './digits_detection.py'

data_root = 'data/digits_det_6000/'
# The images have this size already, and reading a batch takes a few milliseconds.
scale = (96, 96)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    num_workers=0, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=20, num_workers=0, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='FasterCocoMetric', ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
