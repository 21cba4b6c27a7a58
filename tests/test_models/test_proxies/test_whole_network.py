"""Whole networks: their architecture, weights and task losses."""
import pytest
import torch
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.losses import standardize_logits
from mmkd.models.proxies import WholeNetwork
from tests.helpers import classifiers
from tests.helpers.tiny import build

pytestmark = pytest.mark.usefixtures('_of_classifiers')

METHODS = dict(dml=dict(type='mmkd.DML'), kdtuned=dict(type='mmkd.KDTuned', proxy_task=1.0),
               alone=dict(type='mmkd.SHAKE', placement='alone', proxy_task=1.0))


@pytest.mark.parametrize('standardize_task', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_task_losses_of_whole_networks_are_standardized_as_well(method, standardize_task):
    model = build(classifiers.distill(classifiers.classifier(), classifiers.teacher_of(16), x=dict(
        METHODS[method], standardize_task=standardize_task)))
    data = classifiers.batch(model)
    network, outputs = model.mmkd.methods.x.proxies[0].network, []
    network.head.fc.register_forward_hook(lambda _, args, output: outputs.append(output.detach()))
    losses = model.loss(data['inputs'], data['data_samples'])
    (logits, ) = outputs
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    expected = nn.functional.cross_entropy(standardize_logits(logits) if standardize_task else logits, labels)
    torch.testing.assert_close(losses['x.loss_proxy_task'].detach(), expected)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_peer_with_another_loss_keeps_it():
    peer, values = classifiers.classifier(16), {}
    for weight in (1.0, 3.0):
        peer.head.loss = dict(type='CrossEntropyLoss', loss_weight=weight)
        model = build(classifiers.distill(classifiers.classifier(), classifiers.teacher_of(16), x=dict(
            type='mmkd.DML', standardize_task=True, config=dict(model=peer, default_scope='mmpretrain'))))
        data = classifiers.batch(model)
        values[weight] = model.loss(data['inputs'], data['data_samples'])['x.loss_proxy_task'].item()
    assert values[3.0] == pytest.approx(3 * values[1.0])


@pytest.mark.parametrize('init', ['random', 'teacher'])
def test_a_network_like_the_teacher(init):
    proxy = dict(type='mmkd.WholeNetwork', source='teacher', init=init)
    model = build(classifiers.distill(classifiers.classifier(), classifiers.teacher_of(16),
                                     x=dict(type='mmkd.ProxyDistill', proxy=proxy)))
    network, teacher = model.mmkd.methods.x.proxies[0].network, model.mmkd.teacher.model
    assert network.backbone.conv1.weight.shape == teacher.backbone.conv1.weight.shape
    assert torch.equal(network.backbone.conv1.weight, teacher.backbone.conv1.weight) == (init == 'teacher')


def test_a_peer_with_other_classes():
    peer = classifiers.classifier(classes=3)
    with pytest.raises(MMKDError, match='proxy network has 3 classes and the student 5'):
        build(classifiers.distill(classifiers.classifier(), classifiers.teacher_of(16), x=dict(
            type='mmkd.DML', config=dict(model=peer, default_scope='mmpretrain'))))


@pytest.mark.parametrize(('settings', 'words'), [
    (dict(source='peer'), "`source` of WholeNetwork must be '"),
    (dict(init='zero'), "`init` of WholeNetwork must be '"),
    (dict(init='teacher'), "init='teacher' needs source='teacher'"),
    (dict(source='teacher', config='peer.py'), "`config` needs source='student'"),
])
def test_settings_that_do_not_go_together(settings, words):
    with pytest.raises(MMKDError, match=words):
        WholeNetwork(**settings)
