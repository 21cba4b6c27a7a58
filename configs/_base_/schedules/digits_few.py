# What all detectors of configs/examples/digits_few share: AdamW, a cosine, and an average of the weights.
_base_ = 'mmdet::_base_/default_runtime.py'

epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    # To the end of the training, however long it is.
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
# The average of about the last 100 updates, batch norm included, is evaluated and saved.
custom_hooks = [dict(type='EMAHook', momentum=0.01, update_buffers=True)]
auto_scale_lr = dict(enable=False, base_batch_size=8)

default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=1, max_keep_ckpts=1))
log_processor = dict(window_size=25)
randomness = dict(seed=0)
