"""The equations, term by term, against values computed by hand."""
import math

import pytest
import torch
from torch import nn

from mmkd.models.methods import KD, PRESETS, SHAKE, ProxyDistill


class FixedProxy(nn.Module):
    """A proxy that answers with given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, student):
        return self.logits


def kl(p, q, tau):
    def soft(z):
        e = [math.exp(x / tau) for x in z]
        return [x / sum(e) for x in e]
    return tau**2 * sum(a * math.log(a / b) for a, b in zip(soft(p), soft(q), strict=True))


S = [[1.0, 0.0, -1.0], [0.5, 0.5, 2.0]]
P = [[0.0, 2.0, -1.0], [1.0, -0.5, 0.0]]
T = [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def mean_kl(p, q, tau):
    return sum(kl(a, b, tau) for a, b in zip(p, q, strict=True)) / len(p)


def run(method, proxy=P):
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (S, proxy, T)]
    s, p, t = tensors
    if method.proxy is not None:
        method.proxy = FixedProxy(p)
    return method(dict(cls_logits=[s]), dict(cls_logits=[t.detach()])), s, p


@pytest.mark.parametrize('tau, weight', [(4.0, 1.0), (1.0, 0.5)])
def test_shake_is_the_papers_equations(tau, weight):
    outputs, _, _ = run(SHAKE(temperature=tau, weight=weight))
    assert outputs['loss_proxy_teacher'].item() == pytest.approx(mean_kl(T, P, tau))
    assert outputs['loss_proxy_student'].item() == pytest.approx(weight * mean_kl(S, P, tau))
    assert outputs['loss_student'].item() == pytest.approx(weight * mean_kl(P, S, tau))
    assert outputs['proxy_teacher_agreement'] == 0  # argmax: P 1, 0; T 0, 1
    assert outputs['student_teacher_agreement'] == 0.5


def test_kd_is_hintons():
    outputs, _, _ = run(KD(temperature=2.0, weight=0.9))
    assert set(outputs) == {'loss_student', 'student_teacher_agreement'}
    assert outputs['loss_student'].item() == pytest.approx(0.9 * mean_kl(T, S, 2.0))


def test_stop_gradients():
    reached = {'loss_student': (True, False), 'loss_proxy_teacher': (False, True),
               'loss_proxy_student': (False, True)}
    for term, (student, proxy) in reached.items():
        outputs, s, p = run(SHAKE())
        outputs[term].backward()
        assert (s.grad is not None and bool(s.grad.any()), p.grad is not None and bool(p.grad.any())) == (
            student, proxy), term


def test_the_table_of_weights():
    """The rows of ProxyDistill's docstring."""
    shake, kd = SHAKE(weight=0.7), KD(weight=0.7)
    assert (shake.teacher_to_proxy, shake.student_to_proxy, shake.proxy_to_student) == (1, 0.7, 0.7)
    assert kd.proxy is None and kd.proxy_to_student == 0.7


def test_presets_are_named_as_the_papers_name_them():
    assert set(PRESETS) == {'KD', 'PKD', 'SHAKE'}


def test_no_boxes_give_zero_with_a_gradient():
    method = ProxyDistill()
    s = torch.zeros(0, 3, requires_grad=True)
    loss = method(dict(cls_logits=[s]), dict(cls_logits=[torch.zeros(0, 3)]))['loss_student']
    loss.backward()
    assert loss == 0 and s.grad.shape == (0, 3)
