"""Variational Information Distillation for Knowledge Transfer (Ahn et al., CVPR 2019)."""
import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat, Range
from .base import FeatureLoss
from .tensors import at_least_float32, check_maps, pooled_alike


def gaussian_nll(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    r"""Negative log-likelihood of the teacher's features under a Gaussian, one value per sample.

    .. math:: mean\left( \frac{(\mu - t)^2}{2 \sigma^2} + \frac{1}{2} \log \sigma^2 \right)

    The constant term is left out. The paper sums over channels and positions; the mean is the community's
    form.

    Args:
        mean: μ, the student's prediction ``(N, C, H, W)``.
        variance: σ² of every channel, ``(C,)``.
        teacher: t, teacher features ``(N, C, H, W)``.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least; values may be negative.
    """
    variance = at_least_float32(variance)[:, None, None]
    error = (at_least_float32(mean) - at_least_float32(teacher)).square()
    return ((error / variance + variance.log()) / 2).flatten(1).mean(dim=1)


class VariationalRegressor(nn.Module):
    """Predicts the mean and variance of the teacher's features from the student's.

    Three 1x1 convolutions with ReLUs between them compute the mean; the variance is trainable and the same at
    all positions: ``softplus(log_scale) + eps``.

    Args:
        in_channels: Number of channels of the student.
        out_channels: Number of channels of the teacher.
        initial_variance: Variance before training.
        eps: Lower bound of the variance.
    """

    def __init__(self, in_channels: int, out_channels: int, initial_variance: float, eps: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False), nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False))
        scale = math.log(math.expm1(initial_variance - eps))
        self.log_scale = nn.Parameter(torch.full((out_channels, ), scale))
        self.eps = eps

    def forward(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(N, C', H, W)`` and the variance ``(C',)`` for maps ``(N, C, H, W)``."""
        return self.mean(student), F.softplus(self.log_scale) + self.eps


@MODELS.register_module()
class VIDLoss(FeatureLoss):
    """Variational information distillation, summed over levels; see :func:`gaussian_nll`.

    There is a :class:`VariationalRegressor` for every level. If heights or widths differ, the larger map is
    average pooled to the size of the smaller.

    Args:
        weight: Loss weight.
        initial_variance: Variance of the regressors before training.
        eps: Lower bound of the variance.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0,
                 initial_variance: Annotated[float, Range(above=0, at_most=100)] = 5.0,
                 eps: Annotated[float, Range(at_least=1e-8, at_most=1)] = 1e-5) -> None:
        super().__init__(weight)
        if initial_variance <= eps:
            raise MMKDError(f'`initial_variance` of VIDLoss must be above `eps` ({eps}), not '
                            f'{initial_variance}.')
        self.initial_variance = initial_variance
        self.eps = eps

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_maps(student, teacher)
        self.regressors = nn.ModuleList(
            VariationalRegressor(s[0], t[0], self.initial_variance, self.eps)
            for s, t in zip(student, teacher, strict=True))

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        values = []
        for regressor, s, t in zip(self.regressors, student, teacher, strict=True):
            s, t = pooled_alike(at_least_float32(s), t)
            mean, variance = regressor(s)
            values.append(gaussian_nll(mean, variance, t))
        return values
