"""Backbones in parts compute what they compute as a whole."""
from copy import deepcopy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.func import functional_call

from mmkd.errors import MMKDError
from mmkd.models.spots import split, stage_names

RESNET = dict(stem_channels=8, base_channels=8)
VIT = dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32), img_size=32,
           patch_size=8, drop_rate=0.1, drop_path_rate=0.5)
SWIN = dict(arch=dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]), img_size=32, window_size=4,
            drop_rate=0.1, drop_path_rate=0.5, out_indices=(0, 1))
SWIN_V2 = dict(SWIN, arch=dict(SWIN['arch'], extra_norm_every_n_blocks=0))
CONVNEXT = dict(arch=dict(depths=[1, 2, 1, 1], channels=[8, 16, 24, 32]), drop_path_rate=0.5)

LAYERS = ['layer1', 'layer2', 'layer3', 'layer4']
BLOCKS = ['layers.0', 'layers.1', 'layers.2']
STAGES = ['stages.0', 'stages.1', 'stages.2', 'stages.3']
CASES = dict(
    crd_resnet=(dict(type='mmkd.CRDResNet', depth=8), LAYERS[:3]),
    crd_resnet50=(dict(type='mmkd.CRDResNet50', base_channels=8), LAYERS),
    crd_vgg=(dict(type='mmkd.CRDVGG', depth=8), ['block1', 'block2', 'block3', 'block4']),
    crd_wrn=(dict(type='mmkd.CRDWideResNet', depth=10, width=1, out_indices=(1, 3)),
             ['block1', 'block2', 'block3']),
    crd_mobilenet_v2=(dict(type='mmkd.CRDMobileNetV2'),
                      ['blocks.1', 'blocks.2', 'blocks.4', 'blocks.6']),
    crd_shufflenet_v1=(dict(type='mmkd.CRDShuffleNetV1'), LAYERS[:3]),
    crd_shufflenet_v2=(dict(type='mmkd.CRDShuffleNetV2'), LAYERS[:3]),
    mobilenet_v1=(dict(type='mmkd.MobileNetV1'), LAYERS),
    resnet18=(dict(type='ResNet', depth=18, **RESNET, drop_path_rate=0.5), LAYERS),
    resnet50=(dict(type='ResNet', depth=50, **RESNET, out_indices=(0, 1, 2, 3), frozen_stages=1), LAYERS),
    resnet50_d=(dict(type='ResNetV1d', depth=50, **RESNET), LAYERS),
    resnext50=(dict(type='ResNeXt', depth=50, groups=4, width_per_group=4, **RESNET), LAYERS),
    se_resnet50=(dict(type='SEResNet', depth=50, se_ratio=4, **RESNET), LAYERS),
    resnet_cifar=(dict(type='ResNet_CIFAR', depth=18, **RESNET), LAYERS),
    regnet=(dict(type='RegNet', arch=dict(w0=8, wa=8, wm=2, group_w=8, depth=8, bot_mul=1)), LAYERS),
    det_resnet18=(dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False), LAYERS),
    det_resnet50_d=(dict(type='mmdet.ResNetV1d', depth=50, base_channels=8, norm_eval=False), LAYERS),
    det_resnext50=(dict(type='mmdet.ResNeXt', depth=50, base_channels=8, groups=4, base_width=4,
                        norm_eval=False), LAYERS),
    det_three_stages=(dict(type='mmdet.ResNet', depth=18, base_channels=8, num_stages=3, strides=(1, 2, 2),
                           dilations=(1, 1, 1), out_indices=(2, ), norm_eval=False), LAYERS[:3]),
    det_regnet=(dict(type='mmdet.RegNet', arch=dict(w0=8, wa=8, wm=2, group_w=8, depth=8, bot_mul=1.0),
                     norm_eval=False), LAYERS),
    vgg=(dict(type='VGG', depth=11), [f'features.{index}' for index in (1, 3, 6, 9, 12)]),
    vgg_norm=(dict(type='VGG', depth=11, norm_cfg=dict(type='BN'), with_last_pool=False),
              [f'features.{index}' for index in (1, 3, 6, 9, 11)]),
    mobilenet_v2=(dict(type='MobileNetV2', widen_factor=0.25), ['layer2', 'layer3', 'layer5', 'layer7']),
    mobilenet_v3_small=(dict(type='MobileNetV3', arch='small_050'),
                        ['layer1', 'layer3', 'layer8', 'layer11']),
    mobilenet_v3_large=(dict(type='MobileNetV3', arch='large'), ['layer3', 'layer6', 'layer12', 'layer15']),
    shufflenet_v1=(dict(type='ShuffleNetV1', groups=1, widen_factor=0.5), BLOCKS),
    shufflenet_v2=(dict(type='ShuffleNetV2', widen_factor=0.5), BLOCKS),
    convnext=(dict(type='ConvNeXt', **CONVNEXT), STAGES),
    convnext_maps=(dict(type='ConvNeXt', gap_before_final_norm=False, **CONVNEXT), STAGES),
    vit=(dict(type='VisionTransformer', pre_norm=True, **VIT), BLOCKS),
    vit_map=(dict(type='VisionTransformer', out_type='featmap', with_cls_token=False, final_norm=False,
                  **VIT), BLOCKS),
    vit_average=(dict(type='VisionTransformer', out_type='avg_featmap', **dict(VIT, img_size=64)), BLOCKS),
    deit=(dict(type='DistilledVisionTransformer', pre_norm=True, **VIT), BLOCKS),
    swin=(dict(type='SwinTransformer', use_abs_pos_embed=True, **dict(SWIN, img_size=64)), STAGES[:2]),
    swin_after=(dict(type='SwinTransformer', out_after_downsample=True, **SWIN), STAGES[:2]),
    swin_v2=(dict(type='SwinTransformerV2', use_abs_pos_embed=True, **SWIN_V2), STAGES[:2]),
)


@pytest.fixture(autouse=True)
def _scope(_fresh_process):
    init_default_scope('mmpretrain')


@pytest.fixture(params=CASES)
def case(request) -> tuple:
    """A backbone and the names of its stages."""
    cfg, names = CASES[request.param]
    torch.manual_seed(0)
    return MODELS.build(cfg), names


def build(kind: str, **kwargs) -> nn.Module:
    return MODELS.build(dict(type=kind, **kwargs))


def run(parts, images):
    x = parts.stem(images)
    for _, stage in parts.stages:
        x = stage(x)
    return parts.tail(x)


def assert_equal(output, expected):
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def values(output):
    tensors = output if isinstance(output, tuple) else [output]
    return sum(tensor.double().square().sum() for tensor in tensors)


@pytest.mark.parametrize('training', [False, True])
def test_parts_compute_the_last_output(case, training):
    """The same numbers, and in training the same updates of batch norm and the same random decisions."""
    backbone, names = case
    backbone.train(training)
    whole, images = deepcopy(backbone), torch.randn(2, 3, 32, 32)
    parts = split(backbone)
    assert [name for name, _ in parts.stages] == names
    torch.manual_seed(1)
    expected = whole(images)[-1]
    torch.manual_seed(1)
    output = run(parts, images)
    assert isinstance(output, tuple) and len(output) == 1
    assert_equal(output[0], expected)
    expected_state = whole.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, expected_state[name])


def test_a_stage_gives_what_the_module_of_its_name_gives(case):
    backbone, names = case
    backbone.eval()
    images, outputs = torch.randn(1, 3, 32, 32), {}
    for name in names:
        backbone.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.__setitem__(name, output))
    backbone(images)
    parts = split(backbone)
    x = parts.stem(images)
    for name, stage in parts.stages:
        x = stage(x)
        assert_equal(x, outputs[name])


def test_parts_run_with_replaced_parameters(case):
    """Inside functional_call: other values are used, and gradients reach the images but no parameter."""
    backbone, _ = case
    backbone.eval()
    parts = split(backbone)

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, images):
            return run(parts, images)[-1]

    replaced = {name: value.detach() + 0.01 for name, value in backbone.named_parameters()}
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    output = functional_call(Parts(), {f'backbone.{name}': value for name, value in replaced.items()}, images)
    assert_equal(output, functional_call(backbone, replaced, images)[-1])
    assert values(output) != values(run(parts, images)[-1])
    # Weighted, as the sum over normalized features is constant.
    last = output[-1] if isinstance(output, tuple) else output
    (last * torch.randn(last.shape)).sum().backward()
    assert images.grad.any()
    assert all(value.grad is None for value in [*replaced.values(), *backbone.parameters()])


@pytest.mark.parametrize('name', ['vit', 'vit_average', 'swin', 'resnet18'])
def test_images_of_another_shape(name):
    backbone = MODELS.build(CASES[name][0])
    backbone.eval()
    images = torch.randn(1, 3, 32, 64)
    assert_equal(run(split(backbone), images)[-1], backbone(images)[-1])


def test_what_cannot_be_split():
    with pytest.raises(MMKDError, match=r'EfficientNet cannot be .* ResNet, .*SwinTransformer.*Staged'):
        split(build('EfficientNet', arch='b0'))
    # Its forward pass adds the class token in another place.
    with pytest.raises(MMKDError, match='DeiT3 cannot'):
        split(build('DeiT3', arch=VIT['arch'], img_size=32, patch_size=8))
    with pytest.raises(MMKDError, match='VGG with num_classes=10 ends with a classifier inside'):
        split(build('VGG', depth=11, num_classes=10))


@pytest.mark.parametrize(('cfg', 'needed'), [
    (dict(type='ResNet', depth=18, out_indices=(2, ), **RESNET), 3),
    (dict(type='MobileNetV2', widen_factor=0.25, out_indices=(6, )), 7),
    (dict(type='mmkd.CRDWideResNet', depth=10, width=1, out_indices=(0, 2)), 3),
    (dict(type='mmdet.ResNet', depth=18, base_channels=8, out_indices=(0, 1, 2)), 3),
    (dict(SWIN, type='SwinTransformer', out_indices=(0, )), 1),
])
def test_the_last_output_must_be_that_of_the_last_layer(cfg, needed):
    with pytest.raises(MMKDError, match=rf'out_indices=\(.* it needs {needed} among them'):
        split(MODELS.build(cfg))


def test_the_names_of_stages():
    """They are known where the last output does not matter, and unknown without an error."""
    assert stage_names(build('ResNet', depth=18, out_indices=(0, 1), **RESNET)) == LAYERS
    assert stage_names(build('mmdet.DetectoRS_ResNet', depth=50, base_channels=8, output_img=True)) == LAYERS
    assert stage_names(build('EfficientNet', arch='b0')) == []
    assert stage_names(build('VGG', depth=11, num_classes=10)) == []


def test_networks_of_timm_name_their_stages():
    timm = pytest.importorskip('timm')
    assert stage_names(timm.create_model('resnet18')) == LAYERS
    assert stage_names(timm.create_model('regnety_002')) == ['s1', 's2', 's3', 's4']


def test_a_vision_transformer_gives_maps_of_its_own_size_only():
    backbone = build('VisionTransformer', out_type='featmap', **VIT)
    with pytest.raises(MMKDError, match=r'img_size \(32, 32\) only, not of \(32, 64\)'):
        run(split(backbone), torch.randn(1, 3, 32, 64))


def test_any_backbone_with_the_methods():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)

        def stem(self, images):
            return self.first(images)

        def stages(self):
            return [('second', self.second)]

        def tail(self, x):
            return self.last(x)

    network, images = Custom(), torch.randn(1, 3, 4, 4)
    assert_equal(run(split(network), images), (network.last(network.second(network.first(images))), ))
