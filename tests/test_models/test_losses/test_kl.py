import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.losses import PKDLoss, kl_divergence, pearson_distance
from mmkd.models.losses.base import check_weight
from mmkd.registry import MODELS


def test_kl_of_two_classes_by_hand():
    # p = (3/4, 1/4) and q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    target = torch.tensor([[math.log(3.0), 0.0]])
    value = kl_divergence(target, torch.zeros(1, 2))
    assert value.shape == (1, )
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_kl_against_torch(temperature):
    torch.manual_seed(0)
    target, prediction = torch.randn(2, 7, 11, dtype=torch.float64)
    expected = F.kl_div(
        F.log_softmax(prediction / temperature, 1), F.softmax(target / temperature, 1),
        reduction='none').sum(1) * temperature**2
    torch.testing.assert_close(kl_divergence(target, prediction, temperature), expected)


def test_kl_moves_the_prediction_towards_the_target():
    target = torch.tensor([[4.0, 0.0, 0.0]])
    prediction = torch.zeros(1, 3, requires_grad=True)
    kl_divergence(target, prediction).sum().backward()
    assert prediction.grad[0, 0] < 0 < prediction.grad[0, 1]


def test_kl_gradient_at_high_temperature_is_the_difference_of_logits():
    # Hinton et al.: for large tau the gradient of one sample tends to (z - v) / K with centered logits.
    v = torch.tensor([[0.3, -0.1, -0.2]], dtype=torch.float64)
    z = torch.tensor([[-0.2, 0.1, 0.1]], dtype=torch.float64, requires_grad=True)
    kl_divergence(v, z, temperature=1e4).sum().backward()
    torch.testing.assert_close(z.grad, ((z - v) / 3).detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_losses_compute_in_float32_on_half_precision_input(dtype):
    torch.manual_seed(0)
    one, two = (30 * torch.randn(2, 5, 9)).to(dtype)
    value = kl_divergence(one, two, 4.0)
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    torch.testing.assert_close(value, kl_divergence(one.float(), two.float(), 4.0))
    feature = torch.randn(2, 3, 4, 4).to(dtype)
    assert pearson_distance(feature, feature * 2).dtype == torch.float32


def test_empty_kl_has_a_gradient():
    prediction = torch.zeros(0, 5, requires_grad=True)
    kl_divergence(torch.zeros(0, 5), prediction).sum().backward()
    assert prediction.grad.shape == (0, 5)


def test_pearson_distance_against_numpy_correlation():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    r = [np.corrcoef(s[:, c].flatten().numpy(), t[:, c].flatten().numpy())[0, 1] for c in range(4)]
    # The sample standard deviation divides by n-1, the mean by n: 1-r is scaled by (n-1)/n.
    n = 3 * 5 * 6
    expected = (1 - np.mean(r)) * (n - 1) / n
    assert pearson_distance(s, t).item() == pytest.approx(expected, rel=1e-4)


def test_pearson_distance_ignores_scale_and_shift():
    torch.manual_seed(0)
    s, t = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(pearson_distance(5 * s + 3, t), pearson_distance(s, t), rtol=1e-4, atol=0)
    assert pearson_distance(2 * t - 1, t).item() == pytest.approx(0, abs=1e-9)


def test_pearson_distance_of_constant_features_is_finite():
    constant = torch.ones(1, 2, 3, 3, requires_grad=True)
    value = pearson_distance(constant, torch.randn(1, 2, 3, 3))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(constant.grad).all()


def test_pearson_distance_of_single_values_is_zero():
    # Like two constant channels of any size.
    for shape in ((1, 3, 1, 1), (2, 3, 2, 2)):
        s = torch.full(shape, 2.0, requires_grad=True)
        value = pearson_distance(s, torch.full(shape, -1.0))
        value.backward()
        assert value == 0 and not s.grad.any()


def test_pkd_sums_over_levels_and_resamples():
    torch.manual_seed(0)
    s = [torch.randn(1, 2, 8, 8), torch.randn(1, 2, 4, 4)]
    t = [torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)]
    small = F.interpolate(t[1], size=(4, 4), mode='bilinear', align_corners=False)
    expected = 6 * (pearson_distance(s[0], t[0]) + pearson_distance(s[1], small))
    torch.testing.assert_close(PKDLoss(weight=6.0)(s, t), expected)


@pytest.mark.parametrize('value', ['0.5', None, True, -1, -1e-9, math.nan, math.inf, [1.0], torch.ones(1)])
def test_weights_that_are_none(value):
    with pytest.raises(MMKDError, match=r'`alpha` must be a finite number of at least 0, not '):
        check_weight(value, 'alpha')


def test_weights():
    for value in (0, 3, 2.5, np.float32(0.5), np.int64(2)):
        check_weight(value)


@pytest.mark.parametrize(('kind', 'name'), [
    ('PKDLoss', 'weight'), ('SPLoss', 'weight'), ('FGDLoss', 'weight'), ('FGDLoss', 'foreground'),
    ('FGDLoss', 'background'), ('FGDLoss', 'attention'), ('FGDLoss', 'global_'),
    ('RKDLoss', 'distance_weight'), ('RKDLoss', 'angle_weight'), ('ABLoss', 'first_weight'),
    ('FSPLoss', 'first_weight'), ('DKDLoss', 'alpha'), ('DKDLoss', 'beta'), ('DISTLoss', 'beta'),
    ('DISTLoss', 'gamma')])
def test_losses_refuse_what_is_no_weight(kind, name):
    MODELS.build({'type': f'mmkd.{kind}', name: 0})
    for value in ('0.5', None, -0.5):
        with pytest.raises(MMKDError, match=f'`{name}` must be a finite number of at least 0, not {value!r}'):
            MODELS.build({'type': f'mmkd.{kind}', name: value})


def test_ab_refuses_negative_weights_of_levels():
    with pytest.raises(MMKDError, match='`level_weights` must be a finite number'):
        MODELS.build(dict(type='mmkd.ABLoss', level_weights=(1.0, -1.0)))
