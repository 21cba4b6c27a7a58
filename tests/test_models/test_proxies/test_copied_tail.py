"""Copies of the teacher's last part: what they consist of, start as, learn and become, on every family."""
import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.proxies import CopiedTail
from mmkd.models.spots import logit_layout, record, resolve_spot
from mmkd.models.step import Step
from mmkd.models.teachers import Teacher
from tests.helpers import classifiers, families
from tests.helpers.tiny import build, distill


def norms(module):
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]


# Detectors


def detector_with_tail(init, norm_eval):
    teacher = families.detector('faster_rcnn', 16)
    teacher.backbone.norm_eval = norm_eval
    return build(distill(families.detector('faster_rcnn'), teacher,
                        sokd=dict(type='mmkd.SOKD', init=init, last_stage=True)))


@pytest.mark.parametrize(('init', 'norm_eval', 'keeps'), [('teacher', True, True), ('teacher', False, False),
                                                          ('random', True, False)])
def test_a_stage_from_the_teacher_keeps_its_statistics(init, norm_eval, keeps):
    model = detector_with_tail(init, norm_eval)
    proxy = model.mmkd.methods.sokd.proxies[0]
    stage = proxy.tail.backbone.layer4
    before = [norm.running_mean.clone() for norm in norms(stage)]
    data = model.data_preprocessor(demo_mm_inputs(
        2, [[3, 64, 64]] * 2, num_classes=families.CLASSES, num_items=[2, 2]), True)
    model.loss(data['inputs'], data['data_samples'])
    same = [torch.equal(norm.running_mean, mean) for norm, mean in zip(norms(stage), before, strict=True)]
    assert all(same) if keeps else not any(same)
    model.eval()
    assert not any(norm.training for norm in norms(proxy))


def test_such_a_stage_starts_as_the_teachers():
    model = detector_with_tail('teacher', True)
    teacher, proxy = model.mmkd.teacher.model, model.mmkd.methods.sokd.proxies[0]
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(proxy.tail.backbone.layer4(x), teacher.backbone.layer4(x))
    assert {name.split('.')[0] for name, _ in proxy.tail.backbone.named_parameters()} == {'layer4'}


def test_a_detector_whose_stages_are_unknown():
    model = dict(type='mmkd.SOKD', last_stage=True)
    with pytest.raises(MMKDError, match='CSPDarknet cannot be run stage by stage'):
        build(distill(families.detector('yolox'), families.detector('yolox', 16), sokd=model))


# Classifiers


@pytest.mark.usefixtures('_of_classifiers')
@pytest.mark.parametrize(('init', 'keeps'), [('teacher', True), ('random', False)])
def test_the_same_in_classifiers(init, keeps):
    teacher = classifiers.teacher_of(16)
    teacher.backbone.norm_eval = True
    model = build(classifiers.distill(classifiers.classifier(), teacher,
                                     sokd=dict(type='mmkd.SOKD', init=init)))
    assert {norm.training for norm in norms(model.mmkd.methods.sokd.proxies[0].tail.backbone)} == {not keeps}


VIT = dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32), img_size=64,
           patch_size=16)
SWIN = dict(arch=dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]), img_size=64, window_size=4,
            out_indices=(0, 1), use_abs_pos_embed=True)
LINEAR, POOLING = dict(type='LinearClsHead'), dict(type='GlobalAveragePooling')
NORMAL = dict(type='Normal', layer='Linear', std=0.5)  # by default these heads start from zero
CASES = dict(
    # name: (backbone, neck, head, channels, where the copy starts, what is left of the backbone)
    resnet=(dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), POOLING, LINEAR, 64, 'layer3',
            {'layer4'}),
    wide_resnet=(dict(type='mmkd.CRDWideResNet', depth=10, width=1), POOLING, LINEAR, 64, 'block2',
                 {'block3', 'bn1'}),
    vgg=(dict(type='VGG', depth=11, norm_cfg=dict(type='BN')), POOLING, LINEAR, 512, 'features.9',
         {'features.10', 'features.11'}),
    mobilenet_v2=(dict(type='MobileNetV2', widen_factor=0.25), POOLING, LINEAR, 1280, 'layer5',
                  {'layer6', 'layer7', 'conv2'}),
    mobilenet_v3=(dict(type='MobileNetV3', arch='small_050'), POOLING, LINEAR, 288, 'layer8',
                  {'layer9', 'layer10', 'layer11', 'layer12'}),
    shufflenet_v2=(dict(type='ShuffleNetV2', widen_factor=0.5), POOLING, LINEAR, 1024, 'layers.1',
                   {'layers.2', 'layers.3'}),
    convnext=(dict(type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]),
                   drop_path_rate=0.2), None, LINEAR, 32, 'stages.2',
              {'downsample_layers.3', 'stages.3', 'norm3'}),
    vit=(dict(type='VisionTransformer', **VIT), None,
         dict(type='VisionTransformerClsHead', init_cfg=NORMAL), 16, 'layers.1', {'layers.2', 'ln1'}),
    deit=(dict(type='DistilledVisionTransformer', **VIT), None,
          dict(type='DeiTClsHead', init_cfg=NORMAL), 16, 'layers.1', {'layers.2', 'ln1'}),
    swin=(dict(type='SwinTransformer', **SWIN), POOLING, LINEAR, 16, 'stages.0',
          {'stages.0', 'stages.1', 'norm1'}),
    swin_v2=(dict(SWIN, type='SwinTransformerV2', arch=dict(SWIN['arch'], extra_norm_every_n_blocks=0)),
             POOLING, LINEAR, 16, 'stages.0', {'stages.1', 'norm1'}),
)


def teacher_of(family: str) -> ConfigDict:
    backbone, neck, head, channels, _, _ = CASES[family]
    return ConfigDict(
        type='mmpretrain.ImageClassifier', backbone=dict(backbone), neck=neck and dict(neck),
        head=dict(head, num_classes=classifiers.CLASSES, in_channels=channels,
                  loss=dict(type='CrossEntropyLoss')),
        data_preprocessor=dict(classifiers.TEACHER))


def make(family: str, init: str):
    return build(classifiers.distill(classifiers.classifier(), teacher_of(family),
                                    sokd=dict(type='mmkd.SOKD', init=init)))


def parts_of(family: str, names) -> set[str]:
    """Return the submodules of a backbone that some parameters belong to, as named in CASES."""
    kept = CASES[family][-1]
    return {next((part for part in kept if name.startswith(f'{part}.')), name) for name in names}


def logits_of_both(proxy, teacher, images):
    """Return the logits of a copy and of its teacher, for images as the teacher expects them."""
    points = {spot: resolve_spot(teacher, spot, 'teacher') for spot in (proxy.stage_input, 'cls_logits')}
    with torch.no_grad():
        outputs = record(teacher, points, images)
        step = Step(nn.Identity(), images, [], {}, [outputs])
        ((logits, ), _) = proxy.eval()(step, 0, False)
    return logits, outputs['cls_logits'][0]


@pytest.mark.usefixtures('_of_classifiers')
@pytest.mark.parametrize('family', CASES)
def test_the_copy_starts_as_the_teacher(family):
    model = make(family, 'teacher')
    proxy, teacher = model.mmkd.methods.sokd.proxies[0], model.mmkd.teacher.model
    assert proxy.stage_input == f'backbone.{CASES[family][-2]}'
    assert parts_of(family, proxy.tail.backbone.state_dict()) == CASES[family][-1]
    logits, expected = logits_of_both(proxy, teacher, torch.randn(2, 3, 64, 64))
    assert expected.std() > 0
    assert torch.equal(logits, expected)


@pytest.mark.usefixtures('_of_classifiers')
@pytest.mark.parametrize('family', CASES)
def test_the_copy_learns_and_becomes_a_teacher(family):
    model = make(family, 'random')
    proxy, teacher = model.mmkd.methods.sokd.proxies[0], model.mmkd.teacher.model
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    total, log = model.parse_losses(model(**classifiers.batch(model), mode='loss'))
    assert torch.isfinite(total) and log['sokd.loss_proxy_task'] > 0
    total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    reached = {name for name, p in proxy.tail.backbone.named_parameters() if p.grad.any()}
    assert parts_of(family, reached) == CASES[family][-1]
    tail = copy.deepcopy(proxy.tail.state_dict())
    optimizer.step()
    assert any(not torch.equal(value, tail[name]) for name, value in proxy.tail.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())

    config, weights = proxy.export()
    improved = MODELS.build(config.model)
    missing, unexpected = improved.load_state_dict(weights, strict=False)
    # SwinTransformerV2 computes these tables itself, and drops them when weights are loaded.
    assert not [name for name in missing if not name.endswith(('coords_table', 'position_index'))]
    assert not unexpected
    teacher.to(memory_format=torch.contiguous_format)
    images = torch.randn(2, 3, 64, 64)
    logits, frozen = logits_of_both(proxy, teacher, images)
    with torch.no_grad():
        expected = improved.eval()(images)
    torch.testing.assert_close(logits, expected)
    assert not torch.equal(expected, frozen)


@pytest.mark.usefixtures('_of_classifiers')
@pytest.mark.parametrize('family', ['swin', 'vit', 'convnext'])
def test_the_copy_can_be_resumed_and_averaged(family):
    model, resumed = make(family, 'random'), make(family, 'teacher')
    resumed.load_state_dict(model.state_dict())
    proxy = resumed.mmkd.methods.sokd.proxies[0]
    images = torch.randn(2, 3, 64, 64)
    logits, _ = logits_of_both(model.mmkd.methods.sokd.proxies[0], resumed.mmkd.teacher.model, images)
    averaged = copy.deepcopy(proxy)
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.zero_()
    assert torch.equal(logits_of_both(averaged, resumed.mmkd.teacher.model, images)[0], logits)


@pytest.mark.usefixtures('_of_classifiers')
@pytest.mark.parametrize('family', ['convnext', 'swin', 'vit', 'vgg'])
def test_nothing_of_the_teacher_is_left_in_a_random_copy(family):
    teacher = Teacher(teacher_of(family), 'random')
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.fill_(0.3)
    student = build(classifiers.classifier())
    proxy = CopiedTail()
    proxy.build(student, teacher, {}, logit_layout(student, 'student'), True)
    proxy.init_weights()
    assert [name for name, p in proxy.named_parameters() if torch.equal(p, torch.full_like(p, 0.3))] == []


@pytest.mark.usefixtures('_of_classifiers')
def test_the_copy_of_a_frozen_stage_is_trained():
    teacher = teacher_of('resnet')
    teacher.backbone.frozen_stages = 4
    model = build(classifiers.distill(classifiers.classifier(), teacher, sokd=dict(type='mmkd.SOKD')))
    assert all(p.requires_grad for p in model.mmkd.methods.sokd.proxies[0].parameters())


@pytest.mark.usefixtures('_of_classifiers')
def test_a_classifier_without_a_backbone():
    pytest.importorskip('timm')
    teacher = dict(type='mmpretrain.TimmClassifier', model_name='resnet18', num_classes=classifiers.CLASSES,
                   data_preprocessor=dict(classifiers.TEACHER))
    with pytest.raises(MMKDError, match='needs a teacher with a backbone.*TimmClassifier has none'):
        build(classifiers.distill(classifiers.classifier(), teacher, sokd=dict(type='mmkd.SOKD')))


def test_unknown_init():
    with pytest.raises(MMKDError, match="`init` of CopiedTail must be '"):
        CopiedTail('zero')
