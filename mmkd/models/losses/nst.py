"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang and Wang, 2017)."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from .base import FeatureLoss
from .tensors import at_least_float32, check_maps, pooled_alike


def squared_mmd(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy between the channels of two maps, one value per sample.

    .. math:: mean_{ij} \, k(s_i, s_j) + mean_{ij} \, k(t_i, t_j) - 2 \, mean_{ij} \, k(s_i, t_j), \quad
              k(x, y) = (x^T y)^2

    s_i and t_j are the values of a channel at all positions, as a vector of length 1. With this kernel, it
    equals

    .. math:: \| S^T S / C - T^T T / C' \|_F^2

    with a channel in every row of S and T. This form, with Gram matrices of the positions, is computed if
    there are fewer positions than channels.

    Args:
        student: Student feature map ``(N, C, H, W)``.
        teacher: Teacher feature map ``(N, C', H, W)``.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least.
    """
    s = F.normalize(at_least_float32(student).flatten(2), dim=2)
    t = F.normalize(at_least_float32(teacher).flatten(2), dim=2)
    # Autocast would compute the products in half precision.
    with torch.autocast(s.device.type, enabled=False):
        if s.shape[2] < max(s.shape[1], t.shape[1]):
            return (s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]).square().sum(dim=(1, 2))
        return _mean_kernel(s, s) + _mean_kernel(t, t) - 2 * _mean_kernel(s, t)


@MODELS.register_module()
class NSTLoss(FeatureLoss):
    """Neuron selectivity transfer with the polynomial kernel (d = 2, c = 0); see :func:`squared_mmd`.

    If heights or widths differ, the larger map is average pooled to the size of the smaller.

    Args:
        weight: λ/2 in the paper.
    """

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_maps(student, teacher)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return squared_mmd(*pooled_alike(student, teacher))


def _mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).square().mean(dim=(1, 2))
