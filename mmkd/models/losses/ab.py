"""AB: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons.

Byeongho Heo, Minsik Lee, Sangdoo Yun and Jin Young Choi, AAAI 2019.
"""
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat
from .base import FeatureLoss
from .tensors import at_least_float32, check_comparable_maps, pooled_alike


def activation_boundary_distance(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    r"""Squared hinge loss that moves every student neuron to the teacher's side of zero.

    .. math:: \sum_i \begin{cases} \max(0, \mu - s_i)^2 & t_i > 0 \\
                                   \max(0, \mu + s_i)^2 & t_i \le 0 \end{cases}

    It is the paper's differentiable alternative to the number of neurons that only one network activates.

    Args:
        student: s, student features ``(N, C, H, W)`` before the ReLU.
        teacher: t, teacher features ``(N, C, H, W)`` before the ReLU; no gradient flows into them.
        margin: μ.

    Returns:
        Tensor: A value per sample, summed over channels and positions; shape ``(N,)``, in float32 at least.
    """
    student = at_least_float32(student)
    wrong_side = torch.where(teacher > 0, -student, student)
    return F.relu(margin + wrong_side).square().flatten(1).sum(1)


@MODELS.register_module()
class ABLoss(FeatureLoss):
    r"""Distillation of activation boundaries, which trains the student's features before the task.

    .. math:: \frac{w}{N} \sum_l \lambda_l \sum_n AB(r_l(S_l), T_l)

    with :func:`activation_boundary_distance` and a connector r, in the preset a 1x1 convolution with batch
    norm. The larger of two maps is average pooled to the size of the smaller. The features must be those
    before the ReLU. RepDistiller has no connector if channels and sizes agree, and strided convolutions if
    sizes differ.

    Args:
        first_weight: w in the first phase; RepDistiller and the authors use 3/1000.
        weight: w after the first phase.
        margin: μ.
        level_weights: λ of every level; by default 1 for the last level and half as much for each level
            before it.
    """

    has_first_phase = True

    def __init__(self, first_weight: NonNegativeFloat = 3e-3, weight: NonNegativeFloat = 0.0,
                 margin: NonNegativeFloat = 1.0,
                 level_weights: Sequence[NonNegativeFloat] | None = None) -> None:
        super().__init__(weight)
        self.first_weight = first_weight
        self.margin = margin
        self.level_weights = level_weights

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)
        if self.level_weights and len(self.level_weights) != len(student):
            raise MMKDError(f'there are {len(self.level_weights)} level_weights for {len(student)} levels')

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        level_weights = self.level_weights or [0.5**level for level in reversed(range(len(teacher)))]
        values = []
        for level_weight, s, t in zip(level_weights, student, teacher, strict=True):
            s, t = pooled_alike(s, t)
            values.append(level_weight * activation_boundary_distance(s, t, self.margin))
        return values
