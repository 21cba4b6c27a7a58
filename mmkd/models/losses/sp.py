"""SP: Similarity-Preserving Knowledge Distillation (Tung and Mori, ICCV 2019)."""
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from .base import FeatureLoss
from .tensors import at_least_float32


def similarities(feature: Tensor, eps: float = 1e-12) -> Tensor:
    """Inner products of all pairs of samples, every row divided by its norm.

    Args:
        feature: ``(N, C, H, W)`` or ``(N, C)``; flattened per sample.
        eps: A row of a smaller norm (a sample of zeros) becomes zeros, without gradient.

    Returns:
        Tensor: ``(N, N)``, in float32 at least.
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

    with Q the features flattened to ``(N, CHW)``. RepDistiller agrees; torchdistill 1.1.4 divides the rows by
    their sum of magnitudes instead.

    Args:
        student: ``(N, C, H, W)`` or ``(N, C)``.
        teacher: The same of the teacher; its channels, height and width may differ.

    Returns:
        Tensor: A scalar, in float32 at least.
    """
    return F.mse_loss(similarities(student), similarities(teacher))


@MODELS.register_module()
class SPLoss(FeatureLoss):
    """Keeps which samples of a batch the teacher finds similar; see :func:`sp_loss`.

    Args:
        weight: γ; the paper and RepDistiller take 3000.
    """

    is_relational = True

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return sp_loss(student, teacher)
