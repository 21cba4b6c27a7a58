# CIFAR-10 from folders of images, data/cifar10/{train,test}/<class>/*.jpg, which
# tools/dataset_converters/cifar10_folder.py writes.
_base_ = './cifar10_crd.py'

# Files are loaded as BGR.
data_preprocessor = dict(to_rgb=True)
dataset_type = 'CustomDataset'
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline]
test_pipeline = [dict(type='LoadImageFromFile'), *_base_.test_pipeline]

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root='data/cifar10',
        data_prefix='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root='data/cifar10',
        data_prefix='test',
        pipeline=test_pipeline))
test_dataloader = val_dataloader
