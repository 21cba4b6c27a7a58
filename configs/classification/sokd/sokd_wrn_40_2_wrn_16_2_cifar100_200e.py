# SOKD in the setting of its paper (Liu et al., BMVC 2021): 200 epochs, learning rate 0.1, batches of 128
# images, padding by reflection.
_base_ = [
    '../../_base_/models/cifar/wrn_16_2.py',
    '../../_base_/datasets/cifar100_sokd.py',
    '../../_base_/schedules/sokd_200e.py',
    '../../_base_/classification_runtime.py',
]

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher=dict(config='mmkd::cifar/networks/wrn_40_2.py', checkpoint='checkpoints/crd/wrn_40_2.pth'),
    methods=dict(sokd=dict(type='mmkd.SOKD', temperature=4.0, weight=1.0)))
