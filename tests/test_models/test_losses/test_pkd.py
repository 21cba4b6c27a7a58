"""PKD and its distance by Pearson's correlation."""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmkd.models.losses import PKDLoss, pearson_distance


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_pearson_distance_computes_in_float32_on_half_precision_input(dtype):
    torch.manual_seed(0)
    feature = torch.randn(2, 3, 4, 4).to(dtype)
    assert pearson_distance(feature, feature * 2).dtype == torch.float32


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
