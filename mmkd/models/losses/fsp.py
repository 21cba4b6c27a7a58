"""FSP: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning.

Junho Yim, Donggyu Joo, Jihoon Bae and Junmo Kim, CVPR 2017.
"""
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat
from .base import FeatureLoss
from .tensors import check_comparable_maps, pooled_alike


def flow_matrix(first: Tensor, second: Tensor, max_pool: bool = False) -> Tensor:
    r"""Inner products of the channels of two levels of a network, its flow of the solution procedure.

    .. math:: G_{ij} = \frac{1}{HW} \sum_{h,w} F^1_{i,h,w} F^2_{j,h,w}

    Equation 1 of the paper.

    Args:
        first: F¹, feature map ``(N, C1, H1, W1)``.
        second: F², feature map ``(N, C2, H2, W2)``; the larger of the two is pooled to the size of the
            smaller.
        max_pool: Whether to use max pooling instead of average pooling.

    Returns:
        Tensor: Shape ``(N, C1, C2)``, in float32 at least.
    """
    first, second = pooled_alike(first, second, F.adaptive_max_pool2d if max_pool else F.adaptive_avg_pool2d)
    with torch.autocast(first.device.type, enabled=False):  # in float16 the products would overflow
        return first.flatten(2) @ second.flatten(2).transpose(1, 2) / first.shape[-2:].numel()


@MODELS.register_module()
class FSPLoss(FeatureLoss):
    r"""Flow of the solution procedure, which trains the student's features before the task.

    .. math:: \frac{w}{N} \sum_n \sum_{l=1}^{L-1} \frac{\lVert G^T_l - G^S_l \rVert_2^2}{C_l C_{l+1}}

    with G the :func:`flow_matrix` of levels l and l+1. The mean over the entries of the matrices is
    RepDistiller's; equation 2 of the paper sums them.

    Args:
        first_weight: w in the first phase. RepDistiller's script sets 50, which its code multiplies by 0; its
            first phase has weight 1.
        weight: w after the first phase.
        max_pool: Whether the larger level is max pooled, as in the paper, instead of average pooled, as in
            RepDistiller.
    """

    has_first_phase = True

    def __init__(self, first_weight: NonNegativeFloat = 1.0, weight: NonNegativeFloat = 0.0,
                 max_pool: bool = False) -> None:
        super().__init__(weight)
        self.first_weight = first_weight
        self.max_pool = max_pool

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)
        if len(student) < 2:
            raise MMKDError('FSPLoss compares pairs of consecutive levels and needs at least two levels')

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        return [(flow_matrix(*s, self.max_pool) - flow_matrix(*t, self.max_pool)).square().mean((1, 2))
                for s, t in zip(pairwise(student), pairwise(teacher), strict=True)]
