"""At which size networks are looked at before training."""
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmkd.models.spots import common_probe_size, probe, resolve_spot
from tests.helpers.classifiers import CLASSES, STUDENT, classifier, deit


def network(backbone, channels=64):
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=channels),
                data_preprocessor=dict(STUDENT))


NETWORKS = dict(
    crd=network(dict(type='mmkd.CRDResNet', depth=8)),
    stock_cifar=network(dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8)),
    resnet=classifier(),
    deit=deit())


@pytest.fixture
def networks():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return {name: MODELS.build(cfg) for name, cfg in NETWORKS.items()}


def test_the_size_of_those_that_know_one(networks):
    sizes = {pair: common_probe_size(*(networks[name] for name in pair)) for pair in (
        ('crd', 'stock_cifar'), ('crd', 'resnet'), ('resnet', 'crd'), ('resnet', 'deit'),
        ('resnet', 'resnet'), ('crd', 'deit'))}
    assert list(sizes.values()) == [(32, 32), (32, 32), (32, 32), (64, 64), None, None]


def map_of(model, spot, **settings):
    (value, ) = probe(model, {spot: resolve_spot(model, spot, 'student')}, **settings)[spot]
    return tuple(value.shape[1:])


def test_shapes_are_those_of_the_size(networks):
    assert map_of(networks['stock_cifar'], 'stage1') == (8, 32, 32)
    assert map_of(networks['resnet'], 'stage1') == (8, 56, 56)
    assert map_of(networks['resnet'], 'stage1', size=common_probe_size(
        networks['resnet'], networks['crd'])) == (8, 8, 8)


def test_looking_leaves_modes_alone(networks):
    model = networks['resnet'].train()
    before = model.backbone.bn1.running_mean.clone()
    map_of(model, 'stage1', size=(32, 32))
    assert all(module.training for module in model.modules())
    assert torch.equal(model.backbone.bn1.running_mean, before)
