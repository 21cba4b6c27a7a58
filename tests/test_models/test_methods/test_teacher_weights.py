"""Weights of several teachers against straightforward minimization."""
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mmkd.models.losses import bernoulli_kl_divergence, kl_divergence
from mmkd.models.methods import ProxyDistill
from mmkd.models.methods.teacher_weights import adaptive_weights, minimum_norm_weights
from mmkd.models.spots import LogitLayout, SampleMatch


def gradients(number: int, seed: int) -> torch.Tensor:
    return torch.randn(number, 30, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('seed', range(5))
def test_two_teachers_exactly(seed):
    one, other = gradients(2, seed)
    weights = adaptive_weights([one, other])
    shares = torch.linspace(0, 1, 20001, dtype=torch.float64)
    one, other = one.double(), other.double()
    norms = (shares[:, None] * one + (1 - shares[:, None]) * other).norm(dim=1)
    assert weights.sum().item() == pytest.approx(1)
    assert weights[0].item() == pytest.approx(shares[norms.argmin()].item(), abs=1e-4)


@pytest.mark.parametrize('seed', range(8))
def test_the_closed_form_for_two_teachers_with_the_released_bound(seed):
    one, other = gradients(2, seed) + 0.3 * seed  # from conflicting to similar gradients
    shift = other - one
    free = (other @ shift / (shift @ shift)).item()  # d/dw ||w g_1 + (1 - w) g_2||^2 = 0
    weights = adaptive_weights([one, other], tolerance=0.6)
    first = min(max(free, 0.4), 0.6)
    assert weights.tolist() == pytest.approx([first, 1 - first], abs=1e-5)


def test_a_teacher_that_the_student_has_reached_does_not_switch_distillation_off():
    far, near = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert adaptive_weights([far, near], tolerance=0.6).tolist() == pytest.approx([0.4, 0.6])
    *others, nearest = adaptive_weights([far, far, near], tolerance=0.6).tolist()
    assert sum(others) == pytest.approx(0.4) and nearest == pytest.approx(0.6)


def test_a_teacher_between_the_student_and_another_gets_all_the_weight():
    one = torch.tensor([1.0, 0.0])
    assert torch.allclose(adaptive_weights([one, 3 * one]), torch.tensor([1.0, 0.0]))


def test_equal_teachers_get_weights_that_add_up_to_one():
    one = torch.ones(4)
    for number in (2, 3):
        weights = adaptive_weights([one] * number)
        assert weights.sum().item() == pytest.approx(1) and (weights >= 0).all()


@pytest.mark.parametrize('tolerance', [1.0, 0.6, 0.34])
@pytest.mark.parametrize('number', [3, 5])
def test_more_teachers_by_frank_wolfe(number, tolerance):
    flat = gradients(number, number).double()
    gram = (flat @ flat.T).numpy()
    expected = minimize(lambda w: w @ gram @ w, np.full(number, 1 / number), bounds=[(0, tolerance)] * number,
                        constraints=dict(type='eq', fun=lambda w: w.sum() - 1), tol=1e-12).fun
    weights = minimum_norm_weights(flat @ flat.T, tolerance)
    assert weights.sum().item() == pytest.approx(1) and (weights >= 0).all()
    assert weights.max() <= tolerance + 1e-6
    assert (weights @ (flat @ flat.T) @ weights).item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(('activation', 'divergence'), [('softmax', kl_divergence),
                                                    ('sigmoid', bernoulli_kl_divergence)])
def test_the_closed_form_of_the_gradient_is_autograds(activation, divergence):
    method = ProxyDistill(temperature=3.0, teacher_weights='adaptive')
    method.layout = LogitLayout(activation, 4)
    method.match = SampleMatch(method.layout)
    channels = method.layout.channels
    s, p = torch.randn(6, channels, requires_grad=True), torch.randn(6, channels)
    weights = torch.rand(6)
    (weights * divergence(s, p, 3.0)).sum().div(weights.sum()).backward()
    ratio = s.grad.sum(dim=0) / method._gradient([s], [p], [weights])
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3)  # up to one factor
    assert ratio[0] > 0
