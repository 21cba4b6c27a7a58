# FSP (Yim et al., CVPR 2017). In a first phase of 30 epochs the student only learns the flow between its
# stages; the 240 epochs of CRD's benchmark follow.
_base_ = '../../_base_/pairs/resnet32x4_resnet8x4_cifar100.py'

model = dict(methods=dict(fsp=dict(type='mmkd.FSP', first_phase_epochs=30)))

train_cfg = dict(max_epochs=270)
param_scheduler = dict(milestones=[180, 210, 240])
