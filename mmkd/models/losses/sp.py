"""SP: Similarity-Preserving Knowledge Distillation (Tung and Mori, ICCV 2019)."""
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from .base import RelationalFeatureLoss
from .tensors import at_least_float32


def similarities(feature: Tensor, eps: float = 1e-12) -> Tensor:
    """Inner products of all pairs of samples, with every row divided by its norm.

    Args:
        feature: Features ``(N, C, H, W)`` or ``(N, C)``, which are flattened per sample.
        eps: Rows with a smaller norm (of a sample of zeros) become zeros, without gradient.

    Returns:
        Tensor: Shape ``(N, N)``, in float32 at least.
    """
    rows = at_least_float32(feature).flatten(1)
    with torch.autocast(rows.device.type, enabled=False):  # in float16 the products would overflow
        gram = rows @ rows.t()
    norm = torch.linalg.vector_norm(gram, dim=1, keepdim=True)
    return gram / norm.masked_fill(norm < eps, math.inf)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared difference of the similarities between the samples of a batch.

    .. math:: \frac{1}{N^2} \| G^T - G^S \|_F^2, \quad
              G_{i\cdot} = \tilde G_{i\cdot} / \|\tilde G_{i\cdot}\|_2, \; \tilde G = Q Q^\top

    with Q the features, flattened to ``(N, CHW)``. RepDistiller agrees; torchdistill 1.1.4 divides the rows
    by the sum of their magnitudes instead.

    Args:
        student: Student features ``(N, C, H, W)`` or ``(N, C)``.
        teacher: Teacher features; their channels, height and width may differ.

    Returns:
        Tensor: A scalar, in float32 at least.
    """
    return F.mse_loss(similarities(student), similarities(teacher))


@MODELS.register_module()
class SPLoss(RelationalFeatureLoss):
    """Preserves the teacher's similarities between the samples of a batch; see :func:`sp_loss`.

    Args:
        weight: γ; 3000 in the paper and in RepDistiller.
        gather: Whether samples of all processes are related to one another, not only those of each process.
    """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return sp_loss(student, teacher)
