# ResNet8 on all images.
_base_ = './resnet8_5000_student.py'

train_dataloader = dict(dataset=dict(dataset=dict(data_root='data/cifar10')))
train_cfg = dict(max_epochs=10, val_interval=10)
teacher = dict(checkpoint='work_dirs/cifar10_few/resnet8_50000/teacher/epoch_24.pth')
