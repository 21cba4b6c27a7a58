# CIFAR-10 in the setting of cifar100_crd.py, with MMPretrain's mean and standard deviation.
_base_ = 'mmpretrain::_base_/datasets/cifar10_bs16.py'

train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=256)
test_dataloader = dict(batch_size=256)
val_evaluator = dict(topk=(1, 5))
test_evaluator = dict(topk=(1, 5))
