# A first stage of 30 epochs, in which the paraphraser is trained; the student is left alone;
# then the 240 epochs of the benchmark.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(ft=dict(type='mmkd.FT', first_phase_epochs=30)))

train_cfg = dict(max_epochs=270)
param_scheduler = dict(milestones=[180, 210, 240])
