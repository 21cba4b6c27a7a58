# The teacher: ResNet20 on all 50000 images of CIFAR-10.
_base_ = [
    '../../_base_/models/cifar/resnet20.py',
    '../../_base_/datasets/cifar10_crops.py',
    '../../_base_/schedules/cifar10_few.py',
]

model = dict(head=dict(num_classes=10, topk=(1, )))
