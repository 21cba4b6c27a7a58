# WRN-16-1 on 500 images of every class.
_base_ = [
    '../../_base_/models/cifar/wrn_16_1.py',
    '../../_base_/datasets/cifar10_crops.py',
    '../../_base_/schedules/cifar10_few.py',
]

model = dict(head=dict(num_classes=10, topk=(1, )))
# Made by tools/dataset_converters/cifar10_folder.py data/cifar10 data/cifar10_5000 --per-class 500.
train_dataloader = dict(dataset=dict(dataset=dict(data_root='data/cifar10_5000')))
train_cfg = dict(max_epochs=40, val_interval=40)

teacher = dict(
    config='mmkd::examples/cifar10_few/resnet20_teacher.py',
    checkpoint='work_dirs/cifar10_few/wrn_16_1_5000/teacher/epoch_24.pth')
