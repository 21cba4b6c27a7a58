# DeiT (Touvron et al., ICML 2021): RegNetY-16GF -> DeiT-Ti, ImageNet, 300 epochs: 4 GPUs with 256 images
# each. The teacher needs timm (pip install timm). These lines write the weights that DeiT released to a file:
#     import os, timm, torch
#     os.makedirs('checkpoints', exist_ok=True)
#     model = timm.create_model('regnety_160.deit_in1k', pretrained=True)
#     torch.save(dict(state_dict=model.state_dict()), 'checkpoints/regnety_160.pth')
_base_ = 'mmpretrain::deit/deit-tiny-distilled_4xb256_in1k.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='mmkd.ClassifierDistiller',
    student={{_base_.model}},
    teacher=dict(
        config=dict(
            default_scope='mmpretrain',
            model=dict(type='TimmClassifier', model_name='regnety_160', num_classes=1000),
            data_preprocessor={{_base_.data_preprocessor}}),
        checkpoint='checkpoints/regnety_160.pth'),
    methods=dict(deit=dict(type='mmkd.DeiT', hard=True)))
