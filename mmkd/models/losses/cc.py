"""CC: Correlation Congruence for Knowledge Distillation (Peng et al., ICCV 2019)."""
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat, PositiveInt, Range
from .base import RelationalFeatureLoss
from .tensors import at_least_float32


def neighbor_products(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Products of the errors of neighboring samples in the batch, RepDistiller's form of CC.

    .. math:: \frac{1}{N-1} \sum_{i=1}^{N-1} \sum_c |s_{ic} - t_{ic}| \, |s_{i+1,c} - t_{i+1,c}|

    Args:
        student: s, student features ``(N, C)``.
        teacher: t, teacher features ``(N, C)``.

    Returns:
        Tensor: A scalar; 0 for a single sample.
    """
    error = (student - teacher).abs()
    return (error[:-1] * error[1:]).sum() / max(len(error) - 1, 1)


def correlations(feature: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    r"""Kernel of all pairs of samples.

    ``'bilinear'`` is :math:`x_i^\top x_j`. ``'gaussian'`` is :math:`\exp(-\gamma \|x_i - x_j\|^2)` of
    features that are scaled to unit length, approximated by its Taylor series up to order P:

    .. math:: \sum_{p=0}^{P} e^{-2\gamma} \frac{(2\gamma)^p}{p!} (x_i^\top x_j)^p

    Args:
        feature: Features ``(N, C)``, float32 at least.
        kernel: ``'bilinear'`` or ``'gaussian'``.
        gamma: γ.
        order: P.

    Returns:
        Tensor: ``(N, N)``.
    """
    if kernel == 'gaussian':
        norm = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
        feature = feature / norm.masked_fill(norm < 1e-12, math.inf)
    with torch.autocast(feature.device.type, enabled=False):  # in float16 the products would overflow
        products = feature @ feature.t()
    if kernel == 'bilinear':
        return products
    terms = ((2 * gamma)**p / math.factorial(p) * products**p for p in range(order + 1))
    return math.exp(-2 * gamma) * sum(terms)


@MODELS.register_module()
class CCLoss(RelationalFeatureLoss):
    """Makes the correlations between samples congruent, in linear embeddings of both networks' features.

    Both embeddings are trained, as in RepDistiller. Features are flattened per sample, so maps need a
    constant height and width.

    Args:
        weight: Loss weight; 0.02 in RepDistiller.
        dim: Length of the embeddings; ``None`` compares the features without embeddings.
        kernel: ``None`` for :func:`neighbor_products`, RepDistiller's form of CC, to which its weight
            belongs; ``'bilinear'`` or ``'gaussian'`` for the paper's mean squared difference of
            :func:`correlations`.
        gamma: γ of the Gaussian kernel.
        order: P, the order of its Taylor series.
        gather: Whether samples of all processes are related to one another, not only those of each process.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, dim: PositiveInt | None = 128,
                 kernel: Literal['bilinear', 'gaussian'] | None = None,
                 gamma: Annotated[float, Range(above=0, at_most=100)] = 0.4,
                 order: Annotated[int, Range(at_least=1, at_most=100)] = 2, gather: bool = False) -> None:
        super().__init__(weight, gather)
        self.dim = dim
        self.kernel = kernel
        self.gamma = gamma
        self.order = order

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        student_sizes = [math.prod(shape) for shape in student]
        teacher_sizes = [math.prod(shape) for shape in teacher]
        if self.dim is not None:
            self.student_embeddings = nn.ModuleList(nn.Linear(size, self.dim) for size in student_sizes)
            self.teacher_embeddings = nn.ModuleList(nn.Linear(size, self.dim) for size in teacher_sizes)
        elif self.kernel is None and student_sizes != teacher_sizes:
            raise MMKDError(f'CCLoss without embeddings (dim=None) needs features of the same size, and the '
                            f"student's have {student_sizes} numbers, the teacher's {teacher_sizes}")

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        return super().values(*self.embed(student, teacher))

    def masked(self, student: Sequence[Tensor], teacher: Sequence[Tensor], choices: Sequence[Tensor],
               samples: Sequence | None = None) -> Tensor:
        return super().masked(*self.embed(student, teacher), choices)

    def embed(self, student: Sequence[Tensor],
              teacher: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the embeddings ``(N, dim)`` of both networks' features; with ``dim=None``, the features."""
        if self.dim is None:
            return student, teacher
        return _embedded(self.student_embeddings, student), _embedded(self.teacher_embeddings, teacher)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = at_least_float32(student).flatten(1), at_least_float32(teacher).flatten(1)
        if self.kernel is None:
            return neighbor_products(s, t)
        s, t = (correlations(x, self.kernel, self.gamma, self.order) for x in (s, t))
        return F.mse_loss(s, t)


def _embedded(embeddings: nn.ModuleList, features: Sequence[Tensor]) -> list[Tensor]:
    with torch.autocast(features[0].device.type, enabled=False):
        return [embedding(at_least_float32(feature).flatten(1))
                for embedding, feature in zip(embeddings, features, strict=True)]
