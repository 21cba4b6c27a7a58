# FT (Kim et al., NeurIPS 2018). A first phase of 30 epochs trains the paraphraser and leaves the student's
# parameters unchanged; the 240 epochs of CRD's benchmark follow.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(ft=dict(type='mmkd.FT', first_phase_epochs=30)))

train_cfg = dict(max_epochs=270)
param_scheduler = dict(milestones=[180, 210, 240])
