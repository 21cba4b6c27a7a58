_base_ = './classifier_teacher.py'

# ResNet-8 with half of the teacher's channels.
model = dict(backbone=dict(depth=8, stem_channels=8, base_channels=12), head=dict(in_channels=48))
teacher = dict(
    config='configs/quickstart/classifier_teacher.py',
    checkpoint='work_dirs/quickstart_classification/classifier/teacher/epoch_20.pth')
