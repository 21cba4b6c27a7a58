# WRN-16-1 on all images.
_base_ = './wrn_16_1_5000_student.py'

train_dataloader = dict(dataset=dict(dataset=dict(data_root='data/cifar10')))
train_cfg = dict(max_epochs=10, val_interval=10)
teacher = dict(checkpoint='work_dirs/cifar10_few/wrn_16_1_50000/teacher/epoch_24.pth')
