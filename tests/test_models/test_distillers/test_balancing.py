"""Gradients of methods beside the task's: where they are measured, and what a balance makes of them."""
import copy
import functools

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.distillers.balancing import GradientBalance
from mmkd.models.methods import Method
from mmkd.models.nested import tensors_in
from mmkd.models.spots import Recorder
from tests.helpers.classifiers import batch, classifier, distill, teacher_of
from tests.helpers.tiny import build
from tests.helpers.two_processes import run_in_two_processes, step_twice
from tests.test_models.test_methods.test_zoo import inputs, make

pytest.importorskip('mmpretrain')


@pytest.fixture(autouse=True)
def _scope():
    yield
    init_default_scope('mmdet')


# By hand


class Toy(nn.Module):
    """A network whose features are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()


class ToyMethod(Method):
    student_spots = ('features', )

    def forward(self, step):
        raise NotImplementedError


def measured(balance, method, *gradients, weight=1.0, **losses) -> None:
    """Measure a method and a task whose gradients are known."""
    toy = Toy()
    points = balance.points(dict(m=method))
    spots = dict(features=balance._points['gradient:features'])
    with Recorder(toy, {**points, **spots}) as recorder:
        features = toy.backbone(torch.zeros(len(gradients[0]), requires_grad=True))
    task, distillation = ((features * torch.tensor(gradient)).sum() for gradient in gradients)
    balance.measure(recorder, {'loss': task, 'm.loss_student': weight * distillation},
                    dict(m=dict(loss_student=weight * distillation)), dict(m=method))


def toy_balance(share: float = 1.0, weight: float = 1.0) -> tuple[GradientBalance, ToyMethod]:
    method = ToyMethod()
    method.set_common(dict(balance='gradient', share=share))
    return GradientBalance(Toy(), dict(m=method)), method


def test_the_factor_by_hand():
    balance, method = toy_balance(share=0.5)
    assert balance.factor('m', method) == 0, 'nothing is known yet'
    measured(balance, method, [3.0, 4.0], [0.0, 20.0])
    assert balance.ratios[0].item() == pytest.approx(20 / 5)
    assert balance.factor('m', method).item() == pytest.approx(0.5 * 5 / 20)
    assert balance.ratio('m', method) == pytest.approx(0.5)


def test_measurements_are_averaged():
    balance, method = toy_balance()
    for value in (2.0, 8.0):
        balance.due = True
        measured(balance, method, [1.0], [value])
    assert balance.ratios[0].item() == pytest.approx(4), 'the geometric mean'
    measured(balance, method, [1.0], [1e6])
    assert balance.ratios[0].item() == pytest.approx(4 * 10**(1 / 3)), 'one batch does not decide'
    assert balance.last[0] == 1e6 and balance.counts[0] == 3


@pytest.mark.parametrize('gradient', [float('inf'), float('nan'), 0.0])
def test_what_is_not_finite_does_not_count(gradient):
    balance, method = toy_balance()
    balance.due = True
    measured(balance, method, [1.0], [2.0])
    measured(balance, method, [1.0], [gradient])
    assert balance.ratios[0] == 2 and balance.counts[0] == 1
    measured(balance, method, [0.0], [1.0])
    assert balance.ratios[0] == 2 and balance.counts[0] == 1


def test_a_tiny_weight_is_not_made_up_for():
    balance, method = toy_balance()
    measured(balance, method, [1.0], [0.01])
    assert balance.factor('m', method) == 10
    assert balance.ratio('m', method) == pytest.approx(0.1)


def test_schedules_scale_a_share():
    balance, method = toy_balance(share=2.0)
    measured(balance, method, [1.0], [5.0])
    method.scale, method.warmup_factor = 0.5, 0.1
    assert balance.ratio('m', method) == pytest.approx(2 * 0.5 * 0.1)


# Networks


def losses_of(model, task: str, seed: int = 0) -> dict:
    torch.manual_seed(seed)
    return model(**inputs(task, model, seed), mode='loss')


def norm_at(model, module: str, task: str, terms) -> float:
    """Return the norm of the gradient of some terms of the loss at the output of a module."""
    outputs = []
    handle = model.get_submodule(module).register_forward_hook(lambda _, args, output: outputs.append(output))
    losses = losses_of(model, task)
    handle.remove()
    total = sum(level.mean() for name, value in losses.items() if 'loss' in name and terms(name)
                for level in (value if isinstance(value, list) else [value]))
    gradients = torch.autograd.grad(total, tensors_in(outputs), allow_unused=True)
    return sum(gradient.square().sum() for gradient in gradients if gradient is not None).sqrt().item()


CASES = [
    ('classifier', 'KD', 'neck'), ('classifier', 'RKD', 'neck'), ('classifier', 'SP', 'backbone.layer3'),
    ('classifier', 'FitNet', 'backbone.layer2'), ('classifier', 'AT', 'backbone.layer1'),
    ('classifier', 'OFD', 'backbone.layer1'), ('faster_rcnn', 'SHAKE', 'neck'),
    ('faster_rcnn', 'PKD', 'neck'), ('retinanet', 'AT', 'neck'), ('retinanet', 'KD', 'neck')]


@pytest.mark.parametrize(('task', 'name', 'module'), CASES)
def test_the_gradient_is_the_share_of_the_tasks(task, name, module):
    # Random networks agree so much that a larger share would be limited.
    model = make(task, name, balance='gradient', share=1e-3)
    method = name.lower()
    # In eval mode, the same batch gives the same losses again.
    model.eval()
    distillation = norm_at(model, module, task, lambda key: key.startswith(f'{method}.'))
    alone = norm_at(model, module, task, lambda key: '.' not in key)
    assert distillation / alone == pytest.approx(1e-3, rel=1e-3)
    assert model.mmkd.gradient_balance.counts[0] == 1


def test_losses_that_train_on_labels_are_not_balanced():
    settings = dict(standardize_task=True, proxy_task=1.0)
    plain, balanced = (make('classifier', 'SHAKE', share=7.0, balance=balance, **settings).eval()
                       for balance in ('none', 'gradient'))
    plain_losses, balanced_losses = (losses_of(model, 'classifier') for model in (plain, balanced))
    factor = balanced.mmkd.gradient_balance.factor('shake', balanced.mmkd.methods['shake'])
    assert factor != 1
    for term in ('loss_task', 'loss_proxy_task'):
        assert balanced_losses[f'shake.{term}'] == plain_losses[f'shake.{term}'] > 0
    for term in ('loss_student', 'loss_proxy_student', 'loss_proxy_teacher'):
        torch.testing.assert_close(balanced_losses[f'shake.{term}'], factor * plain_losses[f'shake.{term}'])
    agreement = 'shake.student_teacher_agreement'
    assert balanced_losses[agreement] == plain_losses[agreement]


def train(model, steps, interval: int = 2, optimizer=None) -> list[dict]:
    """Take steps with a measurement every ``interval`` steps; return the losses of every step."""
    optimizer = optimizer or torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01, momentum=0.9)
    values = []
    for step in steps:
        model.mmkd.gradient_balance.due = step % interval == 0
        total, log = model.parse_losses(losses_of(model, 'classifier', step))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append({name: value.item() for name, value in log.items()})
    return values


def test_the_weight_does_not_matter():
    first, second = (train(make('classifier', 'SP', weight=weight, balance='gradient'), range(5))
                     for weight in (1.0, 1000.0))
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_resuming_is_exact():
    model = make('classifier', 'AT', 'KD', balance='gradient')
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01, momentum=0.9)
    train(model, range(5), optimizer=optimizer)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, range(5, 9), optimizer=optimizer)
    resumed = make('classifier', 'AT', 'KD', balance='gradient')
    resumed.load_state_dict(state[0])
    optimizer = torch.optim.SGD(
        [parameter for parameter in resumed.parameters() if parameter.requires_grad], lr=0.01, momentum=0.9)
    optimizer.load_state_dict(state[1])
    assert train(resumed, range(5, 9), optimizer=optimizer) == expected


@pytest.mark.parametrize(('task', 'names'), [
    ('classifier', ('AT', 'OFD', 'SHAKE')), ('faster_rcnn', ('PKD', 'KD')), ('retinanet', ('SHAKE', ))])
def test_measuring_changes_nothing(task, names):
    results = []
    for due in (False, True):
        model = make(task, *names)
        model.mmkd.gradient_balance.due = due
        total, log = model.parse_losses(losses_of(model, task))
        total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((log, gradients, torch.rand(2)))
    assert model.mmkd.gradient_balance.counts.tolist() == [1.0] * len(names)
    (log, gradients, random), (other_log, other_gradients, other_random) = results
    assert log == other_log and torch.equal(random, other_random)
    for name, gradient in gradients.items():
        other = other_gradients[name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def test_mixed_precision():
    model = make('classifier', 'SP', 'KD', balance='gradient').eval()
    losses_of(model, 'classifier')
    exact = model.mmkd.gradient_balance.ratios.clone()
    model.mmkd.gradient_balance.counts.zero_()
    model.mmkd.gradient_balance.due = True
    with torch.autocast('cpu', torch.bfloat16):
        losses_of(model, 'classifier')
    torch.testing.assert_close(model.mmkd.gradient_balance.ratios, exact, rtol=0.1, atol=0)


# Who is balanced


@pytest.mark.parametrize(('balance', 'own', 'default', 'expected'), [
    (None, {}, None, False), ('gradient', {}, None, True), (None, dict(balance='gradient'), None, True),
    ('gradient', dict(balance='none'), None, False), ('none', dict(balance='gradient'), None, True),
    (None, {}, 'gradient', True), ('none', {}, 'gradient', False),
    (None, dict(balance='none'), 'gradient', False)])
def test_the_nearest_setting_wins(balance, own, default, expected, monkeypatch):
    from mmkd.models.methods import KD
    if default:
        original = KD.build

        def build_balanced(self, *args):
            self.balance = self.balance or default
            original(self, *args)

        monkeypatch.setattr(KD, 'build', build_balanced)
    cfg = distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', **own))
    if balance:
        cfg['balance'] = balance
    init_default_scope('mmpretrain')
    assert build(cfg).mmkd.methods['kd'].is_balanced == expected


def test_wrong_settings():
    init_default_scope('mmpretrain')
    with pytest.raises(MMKDError, match=r"methods\.kd\.balance` must be 'gradient', 'none' or None, not"):
        build(distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', balance='gradients')))
    with pytest.raises(MMKDError, match=r'methods\.kd\.share` must be a finite number above 0, not 0'):
        build(distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', share=0)))
    with pytest.raises(MMKDError, match=r"`balance` of ClassifierDistiller must be 'gradient', 'none' or"):
        build(dict(distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD')), balance=True))


# What cannot be measured, or not yet


def test_a_first_phase_is_not_balanced():
    model = make('classifier', 'AB', 'KD', balance='gradient')
    plain = make('classifier', 'AB', 'KD')
    for one in (model, plain):
        one.mmkd.methods['ab'].in_first_phase = True
    balanced, expected = (losses_of(one, 'classifier')['ab.loss_feature'] for one in (model, plain))
    assert balanced == expected > 0
    assert not model.mmkd.gradient_balance.counts.any()


def test_of_a_frozen_student_the_logits_are_left():
    init_default_scope('mmpretrain')
    model = build(distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', balance='gradient', share=0.5)))
    model.backbone.requires_grad_(False)
    model.eval()
    data = batch(model)
    model(**data, mode='loss')
    assert model.mmkd.gradient_balance.counts[0] == 1
    losses = model(**data, mode='loss')
    weight = model.head.fc.weight
    norms = [torch.autograd.grad(losses[name], weight, retain_graph=True)[0].norm()
             for name in ('kd.loss_student', 'loss_cls')]
    assert 0.1 < norms[0] / norms[1] < 2


def test_without_gradients_nothing_is_measured():
    model = make('classifier', 'KD')
    model.mmkd.gradient_balance.due = True
    with torch.no_grad():
        losses_of(model, 'classifier')
    assert model.mmkd.gradient_balance.counts[0] == 0


def test_reentrant_checkpointing():
    from torch.utils.checkpoint import checkpoint

    def make_checkpointed(**settings):
        model = make('classifier', 'AT', **settings)
        layer = model.backbone.layer3
        forward = layer.forward
        layer.forward = lambda x: checkpoint(forward, x, use_reentrant=True)
        model.mmkd.gradient_balance.due = True
        return model

    model = make_checkpointed()
    model.parse_losses(losses_of(model, 'classifier'))[0].backward()
    assert model.mmkd.gradient_balance.unavailable
    with pytest.raises(MMKDError, match="at cannot have balance='gradient', because"):
        losses_of(make_checkpointed(balance='gradient'), 'classifier')


def test_without_a_balance_checkpoints_are_the_same():
    assert not any('gradient_balance' in name for name in make('classifier', 'KD').state_dict())
    names = make('classifier', 'KD', balance='gradient').state_dict()
    assert {name for name in names if 'gradient_balance' in name} == {
        'mmkd.gradient_balance.ratios', 'mmkd.gradient_balance.counts'}


# Processes


def worker(rank: int, folder: str) -> None:
    model = make('classifier', 'AT', 'KD', balance='gradient')
    model.mmkd.gradient_balance.due = True
    step_twice(model, functools.partial(inputs, 'classifier'), 'steps', folder, rank)
    torch.save(model.mmkd.gradient_balance.ratios, f'{folder}/{rank}.pt')


@pytest.mark.slow
@pytest.mark.dist
def test_processes_have_the_same_factors(tmp_path):
    run_in_two_processes(worker, str(tmp_path))
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    assert torch.equal(first, second) and (first > 0).all()
    alone = make('classifier', 'AT', 'KD', balance='gradient')
    losses_of(alone, 'classifier')
    assert not torch.equal(alone.mmkd.gradient_balance.ratios, first)
