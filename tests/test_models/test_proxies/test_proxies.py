"""Proxies by themselves: statistics of copied stages, and task losses of whole networks."""
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import init_default_scope
from torch import nn

from mmkd.models.losses import standardize_logits
from tests.helpers import classifiers, families
from tests.helpers.tiny import build, distil


@pytest.fixture
def of_classifiers():
    pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    yield
    init_default_scope('mmdet')


def norms(module):
    return [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]


def bridge_on(start, norm_eval):
    teacher = families.detector('faster_rcnn', 16)
    teacher.backbone.norm_eval = norm_eval
    return build(distil(families.detector('faster_rcnn'), teacher,
                        sokd=dict(type='mmkd.SOKD', init=start, last_stage=True)))


@pytest.mark.parametrize(('start', 'norm_eval', 'keeps'), [('teacher', True, True), ('teacher', False, False),
                                                     ('random', True, False)])
def test_a_stage_from_the_teacher_keeps_its_statistics(start, norm_eval, keeps):
    model = bridge_on(start, norm_eval)
    proxy = model.mmkd.methods.sokd.proxies[0]
    before = [one.running_mean.clone() for one in norms(proxy.stage)]
    data = model.data_preprocessor(demo_mm_inputs(
        2, [[3, 64, 64]] * 2, num_classes=families.CLASSES, num_items=[2, 2]), True)
    model.loss(data['inputs'], data['data_samples'])
    same = [torch.equal(one.running_mean, old) for one, old in zip(norms(proxy.stage), before, strict=True)]
    assert all(same) if keeps else not any(same)
    model.eval()
    assert not any(one.training for one in norms(proxy))


def test_such_a_stage_starts_as_the_teachers():
    model = bridge_on('teacher', True)
    teacher, proxy = model.mmkd.teacher.model, model.mmkd.methods.sokd.proxies[0]
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(proxy.stage(x), teacher.backbone.layer4(x))


@pytest.mark.usefixtures('of_classifiers')
@pytest.mark.parametrize(('start', 'keeps'), [('teacher', True), ('random', False)])
def test_the_same_in_classifiers(start, keeps):
    teacher = classifiers.teacher_of(16)
    teacher.backbone.norm_eval = True
    model = build(classifiers.distil(classifiers.classifier(), teacher,
                                     sokd=dict(type='mmkd.SOKD', init=start)))
    assert {one.training for one in norms(model.mmkd.methods.sokd.proxies[0].tail.backbone)} == {not keeps}


METHODS = dict(dml=dict(type='mmkd.DML'), kdtuned=dict(type='mmkd.KDTuned', proxy_task=1.0),
               alone=dict(type='mmkd.SHAKE', placement='alone', proxy_task=1.0))


@pytest.mark.usefixtures('of_classifiers')
@pytest.mark.parametrize('standardize_task', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_task_losses_of_whole_networks_are_standardized_as_well(method, standardize_task):
    model = build(classifiers.distil(classifiers.classifier(), classifiers.teacher_of(16), x=dict(
        METHODS[method], standardize_task=standardize_task)))
    data = classifiers.batch(model)
    network, given = model.mmkd.methods.x.proxies[0].network, []
    network.model.head.fc.register_forward_hook(lambda _, args, output: given.append(output.detach()))
    losses = model.loss(data['inputs'], data['data_samples'])
    (logits, ) = given
    labels = torch.cat([sample.gt_label for sample in data['data_samples']])
    expected = nn.functional.cross_entropy(standardize_logits(logits) if standardize_task else logits, labels)
    torch.testing.assert_close(losses['x.loss_proxy_task'].detach(), expected)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.usefixtures('of_classifiers')
def test_a_peer_with_another_loss_keeps_it():
    peer, values = classifiers.classifier(16), {}
    for weight in (1.0, 3.0):
        peer.head.loss = dict(type='CrossEntropyLoss', loss_weight=weight)
        model = build(classifiers.distil(classifiers.classifier(), classifiers.teacher_of(16), x=dict(
            type='mmkd.DML', standardize_task=True, config=dict(model=peer, default_scope='mmpretrain'))))
        data = classifiers.batch(model)
        values[weight] = model.loss(data['inputs'], data['data_samples'])['x.loss_proxy_task'].item()
    assert values[3.0] == pytest.approx(3 * values[1.0])
