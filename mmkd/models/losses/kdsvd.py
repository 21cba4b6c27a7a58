"""Self-supervised Knowledge Distillation Using Singular Value Decomposition (Lee et al., ECCV 2018)."""
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat, PositiveInt
from .base import FeatureLoss
from .tensors import at_least_float32, check_comparable_maps


def distilled_vectors(student: Tensor, teacher: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    r"""Compress two maps into their k leading right singular vectors, made comparable.

    A map is a matrix with a position in every row, ``F = U Σ Vᵀ``. The columns of V that belong to the k
    largest singular values tell which channels are active together. Every vector of the teacher is matched
    with the most similar of the student's first k + 3 vectors, which gets the sign of the cosine between
    them. Both are scaled by the teacher's k largest singular values, normalized as a vector to length 1.

    The paper's loss depends on the arbitrary sign of the teacher's vectors; here their sum is positive.

    Args:
        student: Student feature map ``(N, C, H, W)``.
        teacher: Teacher feature map ``(N, C, H', W')``.
        k: Number of vectors, at most the number of channels and of positions.

    Returns:
        tuple[Tensor, Tensor]: Vectors ``(N, C, k)`` of the student and the teacher, in float32 at least.
    """
    _, scale, rows = torch.linalg.svd(_matrix(teacher), full_matrices=False)
    target = rows[:, :k].mT
    target = torch.where(target.sum(dim=1, keepdim=True) < 0, -target, target)
    candidates = _RightSingularVectors.apply(_matrix(student), k + 3)
    with torch.no_grad():
        cosine = candidates.mT @ target
        nearest = cosine.abs().argmax(dim=1, keepdim=True)
        sign = cosine.gather(1, nearest).sign()
    matched = candidates.gather(2, nearest.expand(-1, candidates.shape[1], -1)) * sign
    scale = F.normalize(scale[:, None, :k], dim=2)
    return matched * scale, target * scale


def relation(lower: Tensor, higher: Tensor, beta: float = 8.0) -> Tensor:
    r"""Radial basis function of the differences between the vectors of two levels.

    .. math:: G_{ijl} = \exp( -(a_{il} - b_{jl})^2 / \beta )

    Args:
        lower: a, vectors ``(N, C, k)`` of the shallower level.
        higher: b, vectors ``(N, C', k)`` of the deeper level.
        beta: β, 8 in the paper.

    Returns:
        Tensor: Shape ``(N, C, C', k)``.
    """
    return torch.exp((lower[:, :, None] - higher[:, None]).square() / -beta)


@MODELS.register_module()
class KDSVDLoss(FeatureLoss):
    r"""The relations of consecutive levels of the student imitate the teacher's.

    .. math:: \sum_{ijl} (G^s_{ijl} - G^t_{ijl})^2

    with G the :func:`relation` of the :func:`distilled_vectors` of two consecutive levels; there is a value
    for every such pair. Heights and widths may differ. The gradient of singular vectors grows without bound
    if singular values approach each other; here it is bounded.

    Args:
        weight: Loss weight.
        k: Number of singular vectors of a level.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, k: PositiveInt = 1) -> None:
        super().__init__(weight)
        self.k = k

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)
        if len(student) < 2:
            raise MMKDError('KDSVDLoss relates consecutive levels and needs at least two of them')

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        k = min(self.k, *(min(f.shape[1], f.shape[2] * f.shape[3]) for f in (*student, *teacher)))
        # Autocast would compute the products in half precision.
        with torch.autocast(student[0].device.type, enabled=False):
            vectors = [distilled_vectors(s, t, k) for s, t in zip(student, teacher, strict=True)]
            return [(relation(s, above_s) - relation(t, above_t)).square().sum(dim=(1, 2, 3))
                    for (s, t), (above_s, above_t) in pairwise(vectors)]


def _matrix(feature: Tensor) -> Tensor:
    # The decomposition raises on values that are not finite, which can occur in a step in float16.
    return at_least_float32(feature).flatten(2).mT.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


class _RightSingularVectors(torch.autograd.Function):
    """The right singular vectors ``(N, C, n)`` of matrices ``(N, P, C)``, with a bounded gradient.

    They are the eigenvectors of XᵀX, whose gradient contains 1 / (σⱼ² - σᵢ²) for all pairs. It is replaced by
    d / (d² + ε²), where d is the difference relative to σ₁²: the same for distinct singular values, and 0 for
    equal ones. PyTorch's gradient is NaN if any two singular values are equal, such as two zeros.
    """

    epsilon = 1e-4

    @staticmethod
    def forward(ctx, x: Tensor, count: int) -> Tensor:
        _, sigma, rows = torch.linalg.svd(x, full_matrices=False)
        ctx.save_for_backward(x, sigma, rows)
        return rows[:, :count].mT.contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        x, sigma, rows = ctx.saved_tensors
        largest = sigma[:, :1, None].clamp_min(1e-12)
        squares = (sigma[..., None] / largest).square()
        leading, leading_squares = rows[:, :grad.shape[2]], squares[:, :grad.shape[2]].mT
        inside = rows @ grad
        # The part that is orthogonal to all rows belongs to singular values of 0.
        outside = grad - rows.mT @ inside
        rotation = (rows.mT @ (_bounded_inverse(leading_squares - squares) * inside)
                    + _bounded_inverse(leading_squares) * outside)
        x = x / largest
        return ((x @ rotation) @ leading + (x @ leading.mT) @ rotation.mT) / largest, None


def _bounded_inverse(difference: Tensor) -> Tensor:
    return difference / (difference.square() + _RightSingularVectors.epsilon**2)
