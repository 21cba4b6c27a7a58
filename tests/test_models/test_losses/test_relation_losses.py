"""Losses of relations between samples: SP, PKT, RKD, CC."""
import math

import pytest
import torch
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.losses.cc import CCLoss, correlations, neighbor_products
from mmkd.models.losses.pkt import PKTLoss, conditional_probabilities, pkt_loss
from mmkd.models.losses.rkd import RKDLoss, cosines, differences, relative_distances
from mmkd.models.losses.sp import SPLoss, similarities, sp_loss
from mmkd.registry import MODELS

LOSSES = {
    'sp': SPLoss,
    'pkt': PKTLoss,
    'rkd': RKDLoss,
    'cc': CCLoss,
    'cc-bilinear': lambda: CCLoss(kernel='bilinear', dim=None),
    'cc-gaussian': lambda: CCLoss(kernel='gaussian', dim=None),
}
every_loss = pytest.mark.parametrize('name', LOSSES)


def connected(name, student, teacher):
    torch.manual_seed(1)
    loss = LOSSES[name]()
    loss.build([tuple(student.shape[1:])], [tuple(teacher.shape[1:])])
    return loss.to(torch.promote_types(student.dtype, torch.float32))


def oracle(kind, student, teacher, **kwargs):
    """What a loss of torchdistill, which finds its tensors by names of modules, gives."""
    kinds = pytest.importorskip('torchdistill.losses.mid_level')
    outputs = [{'x': {'output': tensor.clone()}} for tensor in (student, teacher)]
    return getattr(kinds, kind)('x', 'x', **kwargs)(*outputs)


def features(*shape, dtype=torch.float64, n=6):
    torch.manual_seed(0)
    return torch.randn(n, 3, *shape, dtype=dtype), torch.randn(n, 5, *shape, dtype=dtype)


@pytest.mark.parametrize('shape', [(), (4, 2)])
def test_sp_against_torchdistill_spkdloss(shape, monkeypatch):
    kinds = pytest.importorskip('torchdistill.losses.mid_level')
    # Its rows are divided by their L1 norm, `normalize(gram, 1)`, where the paper has L2.
    monkeypatch.setattr(kinds, 'normalize', lambda gram, dim: F.normalize(gram, dim=dim))
    s, t = features(*shape)
    torch.testing.assert_close(SPLoss()([s], [t]), oracle('SPKDLoss', s, t, reduction='batchmean'))


@pytest.mark.parametrize('shape', [(), (4, 2)])
def test_pkt_against_torchdistill_pktloss(shape):
    kinds = pytest.importorskip('torchdistill.losses.mid_level')
    s, t = features(*shape)
    expected = kinds.PKTLoss('', '', '', '').cosine_similarity_loss(s.flatten(1), t.flatten(1))
    torch.testing.assert_close(PKTLoss()([s], [t]), expected)


@pytest.mark.parametrize('shape', [(), (4, 2)])
@pytest.mark.parametrize('weights', [(25., 50.), (1., 0.), (0., 1.)])
def test_rkd_against_torchdistill_rkdloss(shape, weights):
    s, t = features(*shape)
    expected = oracle('RKDLoss', s, t, dist_factor=weights[0], angle_factor=weights[1], reduction='mean')
    torch.testing.assert_close(RKDLoss(1.0, *weights)([s], [t]), expected)


@pytest.mark.parametrize('kernel', ['bilinear', 'gaussian'])
def test_cc_kernels_against_torchdistill_cckdloss(kernel):
    # Which takes the norm over N² where the paper has its square, and does not scale to unit length itself.
    s, t = features()
    config = dict(type=kernel, gamma=0.3, max_p=3)
    units = [x / x.norm(dim=1, keepdim=True) if kernel == 'gaussian' else x for x in (s, t)]
    expected = oracle('CCKDLoss', *units, kernel_config=config, reduction='sum')**2 / 36
    torch.testing.assert_close(CCLoss(dim=None, kernel=kernel, gamma=0.3, order=3)([s], [t]), expected)


def test_gaussian_kernel_of_high_order_is_the_gaussian():
    x, _ = features()
    unit = x / x.norm(dim=1, keepdim=True)
    expected = torch.exp(-0.4 * torch.cdist(unit, unit)**2)
    torch.testing.assert_close(correlations(5 * x, 'gaussian', 0.4, 20), expected)


def test_neighbour_products_by_loops():
    s, t = features()
    t = t[:, :3]
    expected = sum(abs(s[i, c] - t[i, c]) * abs(s[i + 1, c] - t[i + 1, c])
                   for i in range(5) for c in range(3)) / 5
    torch.testing.assert_close(neighbor_products(s, t), expected)
    torch.testing.assert_close(CCLoss(weight=0.02, dim=None)([s], [t]), 0.02 * expected)


def test_sp_of_two_samples_by_hand():
    # Orthogonal samples against equal ones: G = identity, and all entries 1/√2.
    value = sp_loss(torch.eye(2), torch.ones(2, 3))
    half = math.sqrt(0.5)
    assert value.item() == pytest.approx(((1 - half)**2 + half**2) / 2, rel=1e-6)


def test_pkt_probabilities_of_two_samples_by_hand():
    # Cosine 0: kernels 1 and 1/2.
    expected = torch.tensor([[2., 1.], [1., 2.]]) / 3
    torch.testing.assert_close(conditional_probabilities(torch.eye(2)), expected, rtol=1e-5, atol=0)


def test_rkd_relations_of_a_right_angle_by_hand():
    difference, distance = differences(torch.tensor([[0., 0.], [3., 0.], [0., 4.]]))
    torch.testing.assert_close(relative_distances(distance)[1], torch.tensor([3., 0., 5.]) / 4)
    at_corner, at_second = cosines(difference, distance)[:2]
    torch.testing.assert_close(at_corner, torch.tensor([[0., 0., 0.], [0., 1., 0.], [0., 0., 1.]]))
    assert at_second[0, 2].item() == pytest.approx(3 / 5)


def test_relations_ignore_scale_and_rotation():
    s, t = features()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    for name in 'sp', 'pkt', 'rkd', 'cc-gaussian':
        loss = connected(name, s, t)
        torch.testing.assert_close(loss([7 * s @ rotation], [t]), loss([s], [t]), rtol=1e-5, atol=0)
        assert loss([7 * s @ rotation], [s]).item() == pytest.approx(0, abs=1e-12)


@every_loss
@pytest.mark.parametrize('shape', [(), (4, 2)])
def test_a_step_lowers_the_loss(name, shape):
    s, t = features(*shape)
    loss = connected(name, s, t)
    assert loss.is_relational
    s.requires_grad_()
    value = loss([s], [t])
    assert value.shape == ()
    gradient, = torch.autograd.grad(value, s)
    assert gradient.abs().sum() > 0
    assert loss([s - 1e-3 * gradient / gradient.norm()], [t]) < value


@every_loss
def test_gradient_against_finite_differences(name):
    s, t = features(n=4)
    loss = connected(name, s, t)
    assert torch.autograd.gradcheck(lambda x: loss([x], [t]), s.requires_grad_())


@every_loss
@pytest.mark.parametrize('case', ['one sample', 'zeros', 'a sample of zeros', 'equal', 'opposite'])
def test_degenerate_features_are_finite(name, case):
    s, t = features(4, 2, dtype=torch.float32)
    if case == 'one sample':
        s, t = s[:1], t[:1]
    elif case == 'zeros':
        s = torch.zeros_like(s)
    elif case == 'a sample of zeros':
        s[2] = t[3] = 0
    elif case == 'equal':
        s[2] = s[4]
    else:
        s[1::2] = -s[::2]
    loss = connected(name, s, t)
    s.requires_grad_()
    value = loss([s], [t])
    value.backward()
    assert torch.isfinite(value)
    # Nor does a gradient grow by the inverse of what guards a division.
    assert s.grad.isfinite().all() and s.grad.abs().max() < 1e3
    if case == 'one sample' and name != 'cc-bilinear':
        assert value.item() == pytest.approx(0, abs=1e-10)


@every_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(name, dtype):
    s, t = features(4, 2, dtype=torch.float32)
    s, t = (300 * s).to(dtype), (300 * t).to(dtype)  # the inner products are beyond float16
    loss = connected(name, s, t)
    expected = loss([s.float()], [t.float()])
    with torch.autocast('cpu', dtype=dtype):
        value = loss([s], [t])
    assert value.dtype == torch.float32 and torch.isfinite(value)
    torch.testing.assert_close(value, expected)


def test_near_samples_keep_their_distances_in_float32():
    # By inner products, |a|² + |b|² - 2ab would lose these differences to rounding.
    near = torch.tensor([[1000., 0.], [1000., 1 / 64], [1000., 3 / 64]])
    assert relative_distances(differences(near)[1])[0].tolist() == [0, 0.5, 1.5]


def test_opposite_samples_have_no_negative_probability():
    torch.manual_seed(0)
    half = torch.randn(64, 999)
    p = conditional_probabilities(torch.cat([half, -half]))
    assert (p >= 0).all() and torch.isfinite(pkt_loss(torch.cat([half, -half]), half.repeat(2, 1)))


def test_zero_rows_of_similarities():
    g = similarities(torch.tensor([[0., 0.], [3., 4.]]))
    assert g.tolist() == [[0, 0], [0, 1]]


def test_cc_trains_both_embeddings_of_every_level():
    loss = CCLoss(dim=7)
    loss.build([(3, ), (2, 4, 4)], [(5, ), (6, 2, 2)])
    shapes = {name: tuple(value.shape) for name, value in loss.named_parameters() if 'weight' in name}
    assert shapes == {'student_embeddings.0.weight': (7, 3), 'student_embeddings.1.weight': (7, 32),
                      'teacher_embeddings.0.weight': (7, 5), 'teacher_embeddings.1.weight': (7, 24)}
    student = [torch.randn(4, 3), torch.randn(4, 2, 4, 4)]
    teacher = [torch.randn(4, 5), torch.randn(4, 6, 2, 2)]
    loss(student, teacher).backward()
    assert all(value.grad.abs().sum() > 0 for value in loss.parameters())


def test_cc_tells_what_it_cannot_compare():
    with pytest.raises(MMKDError, match=r"the student's have \[12\] numbers, the teacher's \[5\]"):
        CCLoss(dim=None).build([(3, 2, 2)], [(5, )])
    CCLoss(dim=None, kernel='bilinear').build([(3, 2, 2)], [(5, )])
    with pytest.raises(MMKDError, match="not 'rbf'"):
        CCLoss(kernel='rbf')


@pytest.mark.parametrize('kind', ['SPLoss', 'PKTLoss', 'RKDLoss', 'CCLoss'])
def test_weights_and_levels(kind):
    s, t = features()
    t = t[:, :3]
    extra = dict(dim=None) if kind == 'CCLoss' else {}
    one = MODELS.build(dict(type=f'mmkd.{kind}', **extra))
    three = MODELS.build(dict(type=f'mmkd.{kind}', weight=3.0, **extra))
    torch.testing.assert_close(three([s, t], [t, s]), 3 * (one([s], [t]) + one([t], [s])))
