"""Layers under a frozen head: which stages of a classifier they fuse."""
import pytest
import torch
from mmengine.registry import MODELS

from mmkd.errors import MMKDError
from mmkd.models.proxies import FrozenHeadLayers
from mmkd.models.proxies.fusion import fused_spots
from mmkd.models.spots import HookPoint, probe
from tests.helpers.classifiers import batch, classifier, deit, distill, teacher_of
from tests.helpers.tiny import build

pytestmark = pytest.mark.usefixtures('_of_classifiers')

SHAKE = dict(type='mmkd.SHAKE', placement='teacher')


def test_released_fusion_takes_the_last_three_stages():
    model = MODELS.build(teacher_of())
    assert list(fused_spots(model).items()) == [
        ('backbone.layer2', 32), ('backbone.layer3', 64), ('backbone.layer4', 128)]
    bottlenecks = teacher_of(depth=50, size=8)
    bottlenecks.head.in_channels *= 4
    fifty = MODELS.build(bottlenecks)
    assert list(fused_spots(fifty)) == ['backbone.layer2', 'backbone.layer3', 'backbone.layer4']


def teacher_with(backbone: dict, channels: int) -> dict:
    teacher = teacher_of()
    teacher['backbone'] = backbone
    teacher.head.in_channels = channels
    return teacher


@pytest.mark.parametrize(('backbone', 'spots', 'channels'), [
    # What follows the last stage belongs to the map that is classified.
    (dict(type='MobileNetV2', widen_factor=0.25), ['layer3', 'layer5', 'conv2'], 1280),
    (dict(type='mmkd.CRDWideResNet', depth=10, width=1), ['block1', 'block2', 'bn1'], 64),
    # Two stages of one resolution: the last one counts.
    (dict(type='mmkd.CRDVGG', depth=8), ['block1', 'block2', 'block4'], 512),
    # A network whose stages are not known.
    (dict(type='EfficientNet', arch='b0'), ['layers.3', 'layers.4', 'layers.6'], 1280),
])
def test_the_last_map_of_every_resolution_is_fused(backbone, spots, channels):
    model = build(distill(classifier(), teacher_with(backbone, channels), shake=SHAKE))
    assert list(model.mmkd.methods.shake.proxies[0].teacher_spots) == [
        f'backbone.{spot}' for spot in spots]
    total, log = model.parse_losses(model(**batch(model), mode='loss'))
    total.backward()
    assert torch.isfinite(total) and log['shake.loss_student'] > 0


def test_the_stages_of_a_network_of_timm():
    pytest.importorskip('timm')
    for name, stages, pooling in (('regnety_002', ['s2', 's3', 'final_conv'], 'head.global_pool'),
                                  ('resnet18', ['layer2', 'layer3', 'layer4'], 'global_pool')):
        model = MODELS.build(dict(type='mmpretrain.TimmClassifier', model_name=name, num_classes=5))
        assert list(fused_spots(model)) == [f'model.{stage}' for stage in stages]
        points = dict(last=HookPoint(f'model.{stages[-1]}'), head=HookPoint(f'model.{pooling}', 'input', 0))
        recorded = probe(model, points)
        assert torch.equal(recorded['last'][0], recorded['head'][0])


@pytest.mark.parametrize('backbone', [
    dict(type='ResNet', depth=18, out_indices=(1, 2)),
    dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32])),
])
def test_a_head_that_does_not_classify_the_last_map(backbone):
    teacher = teacher_with(backbone, 32)
    teacher['neck'] = None
    with pytest.raises(MMKDError, match='whose head classifies the last map'):
        fused_spots(MODELS.build(teacher))


def test_a_transformer_has_no_stages_to_fuse():
    with pytest.raises(MMKDError, match='feature maps of . resolutions; 3 are needed'):
        build(distill(classifier(), deit(), shake=SHAKE))


def test_unknown_layers():
    with pytest.raises(MMKDError, match="`layers` of FrozenHeadLayers must be '"):
        FrozenHeadLayers('bridge')
