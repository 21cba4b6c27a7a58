"""Losses of class logits: DKD, DIST, hard labels; all of them for what they have in common."""
import math

import pytest
import torch
from torch.nn import functional as F

from mmkd.models.losses import CTKDLoss, MLKDLoss, RLDLoss, WTTMLoss, kl_divergence
from mmkd.models.losses.dist import DISTLoss, mean_pearson_distance
from mmkd.models.losses.dkd import DKDLoss, decoupled_kl_divergence
from mmkd.models.losses.hard_label import HardLabelLoss

LOSSES = [DKDLoss, DISTLoss, HardLabelLoss, MLKDLoss, CTKDLoss, WTTMLoss, RLDLoss]
OF_LABELS = [DKDLoss, RLDLoss]
RELATIONAL = [DISTLoss, MLKDLoss]
ALONE = [kind for kind in LOSSES if kind not in RELATIONAL]
SMALLEST_ELSEWHERE = [HardLabelLoss, WTTMLoss, RLDLoss]
"""Losses that are not smallest where the student has the teacher's logits."""
every_loss = pytest.mark.parametrize('kind', LOSSES)


def logits(scale=3.0, dtype=torch.float64, n=6, k=5):
    torch.manual_seed(0)
    s, t = scale * torch.randn(2, n, k, dtype=dtype)
    return s, t, torch.randint(k, (n, ))


def decoupled_by_loops(teacher, student, label, temperature):
    """TCKD and NCKD of one sample, word by word."""
    p, q = ([math.exp(float(z) / temperature) for z in row] for row in (teacher, student))
    p, q = ([v / sum(row) for v in row] for row in (p, q))
    tckd = (p[label] * math.log(p[label] / q[label])
            + (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label])))
    nckd = 0
    for k in range(len(p)):
        if k != label:
            a, b = p[k] / (1 - p[label]), q[k] / (1 - q[label])
            nckd += a * math.log(a / b)
    return temperature**2 * tckd, temperature**2 * nckd


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_dkd_against_its_definition(temperature, dtype):
    s, t, labels = logits(dtype=dtype)
    parts = [decoupled_by_loops(t[i], s[i], labels[i], temperature) for i in range(6)]
    tckd, nckd = (torch.tensor(part, dtype=dtype) for part in zip(*parts, strict=True))
    torch.testing.assert_close(decoupled_kl_divergence(s, t, labels, temperature), (tckd, nckd),
                               rtol=1e-5, atol=1e-6)
    value = DKDLoss(alpha=0.5, beta=3.0, temperature=temperature)(s, t, labels)
    torch.testing.assert_close(value, 0.5 * tckd + 3 * nckd, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_kd_is_tckd_and_nckd_weighted_by_the_rest(temperature):
    s, t, labels = logits()
    tckd, nckd = decoupled_kl_divergence(s, t, labels, temperature)
    p = (t / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(tckd + (1 - p) * nckd, kl_divergence(s, t, temperature))


def test_dkd_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), the first class is true: the rest are (1/2, 1/2), (1/3, 2/3).
    t, s = torch.tensor([[2., 1, 1]]).log(), torch.tensor([[1., 1, 2]]).log()
    tckd, nckd = decoupled_kl_divergence(s, t, torch.tensor([0]))
    assert tckd.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5)
    assert nckd.item() == pytest.approx(0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4), rel=1e-5)


def test_dkd_of_sure_networks():
    # 1 - p rounds to 0 in float32, and its logarithm is that of the rest all the same.
    s = torch.tensor([[60., 0, 0], [0, 60, 0]], requires_grad=True)
    t, labels = torch.tensor([[0., 60, 0], [60, 1, 0]]), torch.tensor([0, 0])
    tckd, nckd = decoupled_kl_divergence(s, t, labels)
    torch.testing.assert_close(tckd, torch.tensor([60 - math.log(2), 60.]))
    p = 1 / (1 + math.e)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    torch.testing.assert_close(nckd, torch.tensor([math.log(2), 60 * p - entropy]))
    (tckd + nckd).sum().backward()
    assert torch.isfinite(s.grad).all() and s.grad.abs().sum(1).min() > 0.5


@pytest.mark.parametrize('options', [(1.0, 1.0, 1.0), (2.0, 0.0, 1.0), (0.0, 3.0, 4.0)])
def test_dist_against_torchdistill_distloss(options):
    kinds = pytest.importorskip('torchdistill.losses.mid_level')
    s, t, _ = logits()
    other = kinds.DISTLoss('x', 'output', 'x', 'output', *options)
    expected = other({'x': {'output': s}}, {'x': {'output': t}})
    torch.testing.assert_close(DISTLoss(*options)(s, t), expected)


def test_pearson_distances_against_torch_corrcoef():
    s, t, _ = logits()
    for dim, (one, two) in {1: (s, t), 0: (s.t(), t.t())}.items():
        r = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(one, two, strict=True)]
        torch.testing.assert_close(mean_pearson_distance(s, t, dim), 1 - torch.stack(r).mean())


def test_hard_label_is_the_surprise_at_the_teachers_class():
    value = HardLabelLoss()(torch.tensor([[1., 3], [1, 3]]).log(), torch.tensor([[2., -1], [0, 5]]))
    torch.testing.assert_close(value, torch.tensor([math.log(4), math.log(4 / 3)]))


@every_loss
def test_a_step_lowers_the_loss_and_equal_logits_are_best(kind):
    s, t, labels = logits()
    s.requires_grad_()
    loss = kind()
    value = loss(s, t, labels)
    assert value.shape == (() if loss.is_relational else (6, ))
    gradient, = torch.autograd.grad(value.mean(), s)
    step = s - 1e-2 * gradient / gradient.norm()
    assert loss(step, t, labels).mean() < value.mean()
    if kind not in SMALLEST_ELSEWHERE:
        torch.testing.assert_close(loss(t, t, labels), torch.zeros_like(value))
        torch.testing.assert_close(loss(t + 3, t, labels), torch.zeros_like(value))


@every_loss
def test_gradient_against_finite_differences(kind):
    s, t, labels = logits(1.0, n=3)
    assert torch.autograd.gradcheck(lambda x: kind()(x, t, labels), s.requires_grad_())


@pytest.mark.parametrize('kind', ALONE)
def test_samples_are_alone(kind):
    s, t, labels = logits()
    torch.testing.assert_close(kind()(s, t, labels)[2:3], kind()(s[2:3], t[2:3], labels[2:3]))


@every_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(kind, dtype):
    s, t, labels = logits(30.0, torch.float32)
    s, t = s.to(dtype), t.to(dtype)
    expected = kind()(s.float(), t.float(), labels)
    with torch.autocast('cpu', dtype=dtype):
        value = kind()(s, t, labels)
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    torch.testing.assert_close(value, expected)


@every_loss
@pytest.mark.parametrize('case', ['one sample', 'two classes', 'zeros', 'huge'])
def test_degenerate_logits_are_finite(kind, case):
    scale = 1000.0 if case == 'huge' else 3.0
    n, k = {'one sample': (1, 5), 'two classes': (6, 2)}.get(case, (6, 5))
    s, t, labels = logits(scale, torch.float32, n, k)
    s = torch.zeros_like(s) if case == 'zeros' else s
    s.requires_grad_()
    value = kind()(s, t, labels)
    value.mean().backward()
    assert torch.isfinite(value).all() and torch.isfinite(s.grad).all()


@pytest.mark.parametrize('kind', ALONE)
def test_no_samples(kind):
    s = torch.zeros(0, 5, requires_grad=True)
    value = kind()(s, torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    value.sum().backward()
    assert value.shape == (0, ) and s.grad.shape == (0, 5)


def test_what_losses_need():
    assert [kind for kind in LOSSES if kind.needs_labels] == OF_LABELS
    assert [kind for kind in LOSSES if kind.is_relational] == RELATIONAL
    s, t, _ = logits()
    torch.testing.assert_close(HardLabelLoss()(s, t), F.cross_entropy(s, t.argmax(1), reduction='none'))
