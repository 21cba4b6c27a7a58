# What all classifiers of configs/examples/cifar10_few share: SGD with a short warm-up and a cosine.
_base_ = '../classification_runtime.py'

train_cfg = dict(by_epoch=True, max_epochs=24, val_interval=24)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    # To the end of the training, however long it is.
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=64)
randomness = dict(seed=0)
