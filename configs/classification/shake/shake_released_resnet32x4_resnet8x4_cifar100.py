# SHAKE as in the released code: the shadow head on the frozen teacher, all losses on standardized logits, and
# no warm-up of the shadow head.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(
    methods=dict(shake=dict(type='mmkd.SHAKE', placement='teacher', standardize_task=True, warmup=0.0)))
