# WRN-16-1 on all images, trained for long, so that it comes near its teacher.
_base_ = './wrn_16_1_50000_student.py'

train_cfg = dict(max_epochs=48, val_interval=48)
teacher = dict(checkpoint='work_dirs/cifar10_few/wrn_16_1_long/teacher/epoch_24.pth')
