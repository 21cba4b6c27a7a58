# ResNet56 alone on CIFAR-100, in the setting of CRD's benchmark.
_base_ = [
    '../../_base_/models/cifar/resnet56.py',
    '../../_base_/datasets/cifar100_crd.py',
    '../../_base_/schedules/crd_240e.py',
    '../../_base_/classification_runtime.py',
]
