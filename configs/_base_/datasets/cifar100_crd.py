# CIFAR-100 as in CRD's benchmark. MMPretrain's pipeline equals the benchmark's: zero padding of 4 pixels,
# random crop of 32 x 32, random flip.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

data_preprocessor = dict(mean=[129.3105, 124.1085, 112.404], std=[68.2125, 65.4075, 70.4055])
train_dataloader = dict(batch_size=64)
val_dataloader = dict(batch_size=256)
test_dataloader = dict(batch_size=256)
val_evaluator = dict(topk=(1, 5))
test_evaluator = dict(topk=(1, 5))
