# AB (Heo et al., AAAI 2019). In a first phase of 30 epochs the student only learns where the teacher's
# neurons are active; the 240 epochs of CRD's benchmark follow.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(ab=dict(type='mmkd.AB', first_phase_epochs=30)))

train_cfg = dict(max_epochs=270)
param_scheduler = dict(milestones=[180, 210, 240])
