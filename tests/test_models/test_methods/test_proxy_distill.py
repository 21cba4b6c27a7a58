"""The equations, term by term, against values computed by hand."""
import math
import types

import pytest
import torch
from torch import nn

from mmkd.models.methods import DML, KD, SHAKE, SOKD, KDTuned, ProxyDistill
from mmkd.models.methods.table import METHODS
from mmkd.models.spots import LogitLayout, SampleMatch
from mmkd.models.step import Step

SOFTMAX = LogitLayout('softmax', 2)
SIGMOID = LogitLayout('sigmoid', 3, strides=(8, ), anchors=(1, ))
CASCADE = LogitLayout('softmax', 2, stage_loss_weights=(1.0, 0.5))


class FixedProxy(nn.Module):
    """A proxy that answers with given logits, and 7 for its task loss."""

    predicts_for = 'itself'

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, step, index, task):
        return self.outputs, torch.tensor(7.0) if task else None


def softmax(z, tau):
    e = [math.exp(x / tau) for x in z]
    return [x / sum(e) for x in e]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def kl(p, q, tau):
    return tau**2 * sum(a * math.log(a / b) for a, b in zip(softmax(p, tau), softmax(q, tau), strict=True))


def bernoulli_kl(p, q, tau):
    total = 0
    for x, y in zip(p, q, strict=True):
        a, b = sigmoid(x / tau), sigmoid(y / tau)
        total += a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
    return tau**2 * total


S = [[1.0, 0.0, -1.0], [0.5, 0.5, 2.0]]
P = [[0.0, 2.0, -1.0], [1.0, -0.5, 0.0]]
T = [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
WEIGHTS = dict(
    uniform=[1.0, 1.0],
    softmax_teacher=[1 - softmax(T[0], 1)[2], 1 - softmax(T[1], 1)[2]],
    sigmoid_teacher=[sigmoid(3.0), sigmoid(1.0)])


def mean_kl(p, q, tau, divergence=kl, weights=WEIGHTS['uniform']):
    values = [w * divergence(a, b, tau) for w, a, b in zip(weights, p, q, strict=True)]
    return sum(values) / sum(weights)


def as_outputs(rows, layout):
    """Lay rows of logits out as a head gives them, and return them with the leaf tensor."""
    leaf = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    if not layout.dense:
        return [(leaf, )] * len(layout.stage_loss_weights), leaf
    # One image, one level of 1 x 2 places.
    return [([leaf.t().reshape(1, 3, 1, 2)], )], leaf


def run(method, layout=SOFTMAX):
    s, s_leaf = as_outputs(S, layout)
    p, p_leaf = as_outputs(P, layout)
    t, _ = as_outputs(T, layout)
    method.layout, method.match = layout, SampleMatch(layout)
    method.sample_weight = method.sample_weight or ('teacher' if layout.dense else 'uniform')
    if method.proxy_cfg is not None:
        method.proxies = nn.ModuleList([FixedProxy(p)])
    t = [([level.detach() for level in out[0]] if layout.dense else out[0].detach(), ) for out in t]
    sample = types.SimpleNamespace(img_shape=(8, 16))
    step = Step(None, torch.zeros(1, 3, 8, 16), [sample], dict(cls_outputs=s), [dict(cls_outputs=t)])
    return method(step), s_leaf, p_leaf


@pytest.mark.parametrize(('tau', 'weight'), [(4.0, 1.0), (1.0, 0.5)])
def test_shake_is_the_papers_equations(tau, weight):
    outputs, _, _ = run(SHAKE(temperature=tau, weight=weight, reversed_weight=0.25))
    assert outputs['loss_proxy_teacher'].item() == pytest.approx(weight * mean_kl(T, P, tau))
    assert outputs['loss_proxy_student'].item() == pytest.approx(0.25 * weight * mean_kl(S, P, tau))
    assert outputs['loss_student'].item() == pytest.approx(weight * mean_kl(P, S, tau))
    assert 'loss_proxy_task' not in outputs
    assert outputs['proxy_teacher_agreement'] == 0  # argmax: P 1, 0; T 0, 1
    assert outputs['student_teacher_agreement'] == 0.5


def test_kd_is_hintons():
    outputs, _, _ = run(KD(temperature=2.0, weight=0.9))
    assert set(outputs) == {'loss_student', 'student_teacher_agreement'}
    assert outputs['loss_student'].item() == pytest.approx(0.9 * mean_kl(T, S, 2.0))


def standardized(row):
    mean = sum(row) / 3
    std = math.sqrt(sum((x - mean)**2 for x in row) / 3 + 1e-7)
    return [math.pi * (x - mean) / std for x in row]


def test_shake_as_released():
    outputs, _, _ = run(SHAKE(temperature=4.0, placement='teacher', standardize=True))
    s, p, t = ([standardized(row) for row in rows] for rows in (S, P, T))
    assert outputs['loss_student'].item() == pytest.approx(mean_kl(p, s, 4.0))
    assert outputs['loss_proxy_student'].item() == pytest.approx(mean_kl(s, p, 4.0))
    squares = [(a - b)**2 for x, y in zip(t, p, strict=True) for a, b in zip(x, y, strict=True)]
    assert outputs['loss_proxy_teacher'].item() == pytest.approx(sum(squares) / 6)
    assert outputs['loss_proxy_task'] == 7


def test_boxes_are_weighted_by_probabilities_and_not_by_standardized_logits():
    outputs, _, _ = run(
        SHAKE(temperature=4.0, placement='teacher', standardize=True, sample_weight='teacher'))
    s, p = ([standardized(row) for row in rows] for rows in (S, P))
    assert outputs['loss_student'].item() == pytest.approx(
        mean_kl(p, s, 4.0, weights=WEIGHTS['softmax_teacher']))


def test_sokd_is_the_papers_equations():
    outputs, _, _ = run(SOKD(temperature=4.0))
    assert outputs['loss_proxy_task'] == 7
    assert outputs['loss_proxy_teacher'].item() == pytest.approx(mean_kl(T, P, 4.0))
    assert outputs['loss_proxy_student'].item() == pytest.approx(mean_kl(S, P, 4.0))
    assert outputs['loss_student'].item() == pytest.approx(mean_kl(P, S, 4.0))


@pytest.mark.parametrize(('method', 'terms'), [
    (DML(temperature=4.0, weight=0.5), {'loss_proxy_task', 'loss_proxy_student'}),
    (DML(temperature=4.0, weight=0.5, reversed=False), {'loss_proxy_task'}),
    (KDTuned(temperature=4.0, weight=0.5), {'loss_proxy_student'}),
], ids=['DML', 'DML†', 'KD†'])
def test_online_kd(method, terms):
    outputs, _, _ = run(method)
    assert {name for name in outputs if name.startswith('loss_proxy')} == terms
    assert outputs['loss_student'].item() == pytest.approx(0.5 * mean_kl(P, S, 4.0))
    if 'loss_proxy_student' in terms:
        assert outputs['loss_proxy_student'].item() == pytest.approx(0.5 * mean_kl(S, P, 4.0))
    if 'loss_proxy_task' in terms:
        assert outputs['loss_proxy_task'] == 7


@pytest.mark.parametrize('sample_weight', ['uniform', 'teacher'])
def test_sigmoid_heads_compare_every_class_by_itself(sample_weight):
    outputs, _, _ = run(SHAKE(temperature=2.0, sample_weight=sample_weight), SIGMOID)
    weights = WEIGHTS['uniform' if sample_weight == 'uniform' else 'sigmoid_teacher']
    for name, p, q in (('loss_proxy_teacher', T, P), ('loss_proxy_student', S, P), ('loss_student', P, S)):
        expected = mean_kl(p, q, 2.0, bernoulli_kl, weights)
        assert outputs[name].item() == pytest.approx(expected), name


def test_softmax_heads_by_the_teachers_weight():
    outputs, _, _ = run(KD(temperature=2.0, sample_weight='teacher'))
    assert outputs['loss_student'].item() == pytest.approx(
        mean_kl(T, S, 2.0, weights=WEIGHTS['softmax_teacher']))


def test_stages_of_a_cascade_count_by_their_own_weights():
    outputs, _, _ = run(KD(temperature=2.0), CASCADE)
    assert outputs['loss_student'].item() == pytest.approx(1.5 * mean_kl(T, S, 2.0))


@pytest.mark.parametrize('layout', [SOFTMAX, SIGMOID, CASCADE], ids=['softmax', 'sigmoid', 'cascade'])
def test_stop_gradients(layout):
    reached = {'loss_student': (True, False), 'loss_proxy_teacher': (False, True),
               'loss_proxy_student': (False, True)}
    for term, (student, proxy) in reached.items():
        outputs, s, p = run(SHAKE(), layout)
        outputs[term].backward()
        assert (s.grad is not None and bool(s.grad.any()), p.grad is not None and bool(p.grad.any())) == (
            student, proxy), term


@pytest.mark.parametrize('weight', [1.0, 5.0])
@pytest.mark.parametrize('balance', [1.0, 0.5])
def test_the_effective_weight_of_the_teacher(weight, balance):
    """A proxy that has learned all it can passes on w / (1 + λ) of what KD with weight 1 would teach."""
    method = SHAKE(temperature=1.0, weight=weight, reversed_weight=balance)
    _, s, p = run(method)
    t, _ = as_outputs(T, SOFTMAX)
    step = Step(None, torch.zeros(1, 3, 8, 16), [], dict(cls_outputs=[(s, )]),
                [dict(cls_outputs=[(t[0][0].detach(), )])])
    method.proxies[0].outputs = [(p, )]
    optimizer = torch.optim.LBFGS([p], lr=1.0, max_iter=100, tolerance_grad=1e-10, tolerance_change=0)

    def proxy_loss():
        optimizer.zero_grad()
        losses = method(step)
        total = losses['loss_proxy_teacher'] + losses['loss_proxy_student']
        total.backward(inputs=[p])
        return total

    optimizer.step(proxy_loss)
    gradient, = torch.autograd.grad(method(step)['loss_student'], s)
    kd_outputs, s, _ = run(KD(temperature=1.0))
    kd_gradient, = torch.autograd.grad(kd_outputs['loss_student'], s)
    torch.testing.assert_close(gradient, weight / (1 + balance) * kd_gradient, rtol=1e-3, atol=1e-4)


TABLE = {
    # name: (preset, proxy, a, b, c, d, e) with λ = 0.7
    'KD': (KD(weight=0.7), None, 0, 1, 1, 0.7, 1),  # b and c have no proxy to act on
    'KD†': (KDTuned(weight=0.7), 'WholeNetwork', 0, 0, 0.7, 0.7, 1),
    'DML†': (DML(weight=0.7, reversed=False), 'WholeNetwork', 1, 0, 0, 0.7, 1),
    'DML': (DML(weight=0.7), 'WholeNetwork', 1, 0, 0.7, 0.7, 1),
    'SHAKE': (SHAKE(weight=0.5, reversed_weight=0.25), 'CopiedHead', 0, 0.5, 0.125, 0.5, 1),
    'SHAKE, released': (SHAKE(placement='teacher', weight=0.5), 'FrozenHeadLayers', 1, 0.5, 0.5, 0.5, 1),
    'SHAKE, alone': (SHAKE(placement='alone', weight=0.5), 'WholeNetwork', 0, 0.5, 0.5, 0.5, 1),
    'SOKD': (SOKD(weight=0.5, reversed_weight=2.0), 'CopiedHead', 1, 0.5, 1, 0.5, 1),
}


@pytest.mark.parametrize('row', TABLE, ids=str)
def test_the_table_of_weights(row):
    """The rows of ProxyDistill's docstring."""
    method, proxy, *weights = TABLE[row]
    cfg = method.choose_proxy()  # for a two-stage detector
    assert (cfg and cfg['type']) == (proxy and f'mmkd.{proxy}')
    assert [method.proxy_task, method.teacher_to_proxy, method.student_to_proxy, method.proxy_to_student,
            method.student_task] == weights


def test_methods_are_named_as_the_papers_name_them():
    assert set(METHODS) == {
        'KD', 'KDTuned', 'DML', 'SHAKE', 'SOKD', 'DeiT', 'SAKD', 'LD', 'CrossKD', 'DKD', 'DIST', 'HardLabel',
        'FitNet', 'AT', 'NST', 'VID', 'KDSVD', 'AB', 'FSP', 'FT', 'OFD', 'ReviewKD', 'SP', 'CC', 'RKD', 'PKT',
        'CRD', 'PKD', 'CWD', 'FGD', 'MGD', 'LSKD', 'MLKD', 'CTKD', 'WTTM', 'RLD',
        'BCKD', 'BoxDistill', 'PredictionKD', 'QueryBoxes'}


def test_no_boxes_give_zero_with_a_gradient():
    method = ProxyDistill()
    method.sample_weight = 'uniform'
    s = torch.zeros(0, 3, requires_grad=True)
    step = Step(None, torch.zeros(1, 3, 8, 8), [], dict(cls_outputs=[(s, )]),
                [dict(cls_outputs=[(torch.zeros(0, 3), )])])
    loss = method(step)['loss_student']
    loss.backward()
    assert loss == 0 and s.grad.shape == (0, 3)
