# ResNet-50 -> MobileNet, ImageNet, 100 epochs: 8 GPUs with 32 images each (lr 0.1).
# MMPretrain's figure: teacher 76.55 % top-1.
_base_ = '../../classification/baselines/mobilenetv1_8xb32_in1k.py'

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmpretrain::resnet/resnet50_8xb32_in1k.py',
        checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/'
        'resnet50_8xb32_in1k_20210831-ea4938fc.pth'),
    methods=dict())
