# The pair ../../cifar/resnet32x4_resnet8x4.py with all images in memory, see docs/speed_data.md.
_base_ = [
    '../../_base_/models/cifar/resnet8x4.py',
    '../../_base_/datasets/cifar100_resident.py',
    '../../_base_/schedules/crd_240e.py',
    '../../_base_/classification_runtime.py',
]

teacher = dict(config='mmkd::cifar/networks/resnet32x4.py', checkpoint='checkpoints/crd/resnet32x4.pth')
