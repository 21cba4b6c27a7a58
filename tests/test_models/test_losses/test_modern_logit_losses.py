"""LSKD, CTKD, WTTM, MLKD, RLD against loops over their definitions, in float64."""
import math

import pytest
import torch
from mmengine.registry import init_default_scope

from mmkd.errors import MMKDError
from mmkd.models.losses import CTKDLoss, MLKDLoss, RLDLoss, WTTMLoss, kl_divergence
from tests.helpers import classifiers
from tests.helpers.classifiers import batch, classifier, teacher_of
from tests.helpers.families import detector
from tests.helpers.tiny import build, distill
from tests.test_models.test_losses.test_logit_losses import logits


def softmax(row, temperature=1.0):
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


# WTTM


@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('gamma', [0.2, 0.7])
def test_wttm_against_loops(gamma, weighted):
    s, t, _ = logits()
    values = []
    for s_row, t_row in zip(s.tolist(), t.tolist(), strict=True):
        powers = [p**gamma for p in softmax(t_row)]
        divergence = kl([power / sum(powers) for power in powers], softmax(s_row))
        values.append((sum(powers) if weighted else 1) * divergence)
    torch.testing.assert_close(WTTMLoss(gamma, weighted)(s, t), float64(values))


def test_wttm_with_exponent_one_is_kd_at_temperature_one():
    s, t, _ = logits()
    torch.testing.assert_close(WTTMLoss(gamma=1.0)(s, t), kl_divergence(s, t))


# MLKD


def loops_mlkd(s, t, temperature):
    """The three terms at one temperature."""
    p, q = ([softmax(row, temperature) for row in matrix.tolist()] for matrix in (t, s))
    n, k = len(p), len(p[0])
    instances = sum(temperature**2 * kl(*rows) for rows in zip(p, q, strict=True)) / n
    batch = sum(sum(p[i][c] * p[j][c] - q[i][c] * q[j][c] for c in range(k))**2
                for i in range(n) for j in range(n)) / n
    classes = sum(sum(p[i][c] * p[i][d] - q[i][c] * q[i][d] for i in range(n))**2
                  for c in range(k) for d in range(k)) / k
    return instances, batch, classes


def test_mlkd_against_loops():
    s, t, _ = logits()
    terms = [loops_mlkd(s, t, temperature) for temperature in (2.0, 3.0, 4.0, 5.0, 6.0)]
    torch.testing.assert_close(MLKDLoss()(s, t), float64(sum(map(sum, terms))))
    loss = MLKDLoss([4.0], instance_weight=0.5, batch_weight=2.0, class_weight=3.0)
    instances, of_batch, classes = terms[2]
    torch.testing.assert_close(loss(s, t), float64(0.5 * instances + 2 * of_batch + 3 * classes))


def test_mlkd_of_no_samples_is_zero():
    s = torch.zeros(0, 5, requires_grad=True)
    value = MLKDLoss()(s, torch.zeros(0, 5))
    value.backward()
    assert value == 0 and s.grad.shape == (0, 5)


# RLD


def loops_rld(s, t, label, alpha, beta, temperature, confidence_temperature):
    p, q = softmax(t, confidence_temperature), softmax(s, confidence_temperature)
    best = max(p)
    confidence = confidence_temperature**2 * kl((best, 1 - best), (q[label], 1 - q[label]))
    kept = [k for k in range(len(t)) if t[k] < t[label]]
    correlation = temperature**2 * kl(softmax([t[k] for k in kept], temperature),
                                      softmax([s[k] for k in kept], temperature)) if kept else 0
    return alpha * confidence + beta * correlation


@pytest.mark.parametrize('confidence_temperature', [None, 1.5])
def test_rld_against_loops(confidence_temperature):
    s, t, _ = logits(n=8)
    labels = torch.arange(8) % 5
    labels[0] = t[0].argmin()  # no class is left
    labels[1] = t[1].argmax()  # all others are left
    rows = zip(s.tolist(), t.tolist(), labels.tolist(), strict=True)
    expected = [loops_rld(*row, 0.5, 3.0, 4.0, confidence_temperature or 4.0) for row in rows]
    value = RLDLoss(0.5, 3.0, 4.0, confidence_temperature)(s, t, labels)
    torch.testing.assert_close(value, float64(expected))


def test_rld_where_no_class_is_left_teaches_confidence_only():
    s, t = torch.randn(1, 4, requires_grad=True), torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    gradient, = torch.autograd.grad(RLDLoss(alpha=0.0)(s, t, torch.tensor([3])).sum(), s)
    assert not gradient.any()


# CTKD


@pytest.mark.parametrize(('progress', 'reversal'), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.7, 1.0)])
def test_ctkd_against_kd_at_its_temperature(progress, reversal):
    s, t, _ = logits()
    loss = CTKDLoss(start=1.0, range_=20.0, ramp=0.1).double()
    loss.progress = progress
    assert loss.reversal == pytest.approx(reversal)
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    temperature = 1 + 20 * theta.sigmoid()
    expected = kl_divergence(s, t, temperature)
    torch.testing.assert_close(loss(s, t), expected)
    assert loss.logged()['temperature'].item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    gradient, = torch.autograd.grad(loss(s, t).mean(), loss.theta)
    forward, = torch.autograd.grad(expected.mean(), theta)
    torch.testing.assert_close(gradient, -reversal * forward)


def test_the_student_of_ctkd_has_the_gradient_of_kd():
    s, t, _ = logits()
    s.requires_grad_()
    gradient, = torch.autograd.grad(CTKDLoss().double()(s, t).sum(), s)
    expected, = torch.autograd.grad(kl_divergence(s, t, 1 + 20 * torch.sigmoid(float64(1.0))).sum(), s)
    torch.testing.assert_close(gradient, expected)


def test_a_step_of_ctkd_raises_the_loss_through_the_temperature():
    s, t, _ = logits()
    loss = CTKDLoss().double()
    before = loss(s, t).mean()
    before.backward()
    with torch.no_grad():
        loss.theta -= 0.1 * loss.theta.grad
    assert loss(s, t).mean() > before


def test_ctkd_learns_how_far_training_is_and_logs_its_temperature():
    init_default_scope('mmpretrain')
    model = build(classifiers.distill(classifier(), teacher_of(), ctkd=dict(type='mmkd.CTKD')))
    method = model.mmkd.methods['ctkd']
    gradients = []
    for method.progress in (0.0, 1.0):
        losses = model(**batch(model), mode='loss')
        gradient, = torch.autograd.grad(losses['ctkd.loss_logit'], method.loss.theta)
        gradients.append(gradient.item())
    assert gradients[0] == 0 and gradients[1] != 0
    assert losses['ctkd.temperature'].item() == pytest.approx(15.62, abs=0.01)


# LSKD


def torchdistill_lskd(s, t, temperature):
    kinds = pytest.importorskip('torchdistill.losses.mid_level')
    loss = kinds.LogitStdKDLoss('x', 'output', 'x', 'output', temperature, alpha=0.0)
    return temperature**2 * loss({'x': {'output': s}}, {'x': {'output': t}})


@pytest.mark.parametrize('temperature', [2.0, 3.0])
def test_lskd_against_torchdistill(temperature):
    init_default_scope('mmpretrain')
    method = dict(type='mmkd.LSKD', temperature=temperature, weight=9.0)
    model = build(classifiers.distill(classifier(), teacher_of(), lskd=method))
    s, t, _ = logits(n=6, k=model.head.num_classes)
    lskd = model.mmkd.methods['lskd']
    student, teacher = lskd._logits([s]), lskd._logits([t])
    value = lskd.proxy_to_student * lskd._kl(student[0], teacher[0]).mean()
    torch.testing.assert_close(value, 9 * torchdistill_lskd(s, t, temperature), rtol=1e-5, atol=0)
    assert lskd.student_task == 0.1


def test_lskd_does_not_see_shift_and_scale():
    init_default_scope('mmpretrain')
    model = build(classifiers.distill(classifier(), teacher_of(), lskd=dict(type='mmkd.LSKD')))
    s, t, _ = logits(k=model.head.num_classes)
    lskd = model.mmkd.methods['lskd']
    values = [lskd._kl(*(lskd._logits([x])[0] for x in pair)).mean()
              for pair in ((s, t), (0.3 * s + 2, 5 * t - 1))]
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    assert values[0] > 0.01


@pytest.mark.parametrize('name', ['LSKD', 'MLKD', 'CTKD', 'WTTM', 'RLD'])
def test_dense_detectors_have_no_distribution_over_classes(name):
    with pytest.raises(MMKDError, match=f'{name} compares distributions over classes .* Use KD'):
        build(distill(detector('retinanet'), detector('retinanet', 16), m=dict(type=f'mmkd.{name}')))
