# WRN-16-2 alone on CIFAR-10, from folders of images, in the setting of CRD's benchmark.
_base_ = [
    '../../_base_/models/cifar/wrn_16_2.py',
    '../../_base_/datasets/cifar10_folder.py',
    '../../_base_/schedules/crd_240e.py',
    '../../_base_/classification_runtime.py',
]

model = dict(head=dict(num_classes=10))
