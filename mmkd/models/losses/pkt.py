"""PKT: Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas, ECCV 2018)."""
import math

import torch
from torch import Tensor

from ...registry import MODELS
from .base import FeatureLoss
from .tensors import at_least_float32


def conditional_probabilities(feature: Tensor, eps: float = 1e-7) -> Tensor:
    """Probability that a sample chooses another as its neighbor, by their cosine similarity.

    Args:
        feature: ``(N, C, H, W)`` or ``(N, C)``; flattened per sample.
        eps: Added to the norms. A sample of zeros has similarity 0 with all, without gradient.

    Returns:
        Tensor: ``(N, N)``, rows sum to 1, in float32 at least.
    """
    rows = at_least_float32(feature).flatten(1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / (norm + eps).masked_fill(norm == 0, math.inf)
    with torch.autocast(rows.device.type, enabled=False):
        cosine = rows @ rows.t()
    # Rounding can give cosines just below -1, and the logarithm of a negative number.
    kernel = ((cosine + 1) / 2).clamp(min=0)
    return kernel / kernel.sum(dim=1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    r"""KL divergence of the samples' conditional probabilities, teacher to student.

    .. math:: \frac{1}{N^2} \sum_{i,j} p_{j|i} \log \frac{p_{j|i} + \epsilon}{q_{j|i} + \epsilon}, \quad
              p_{j|i} = \frac{K(x_i, x_j)}{\sum_k K(x_i, x_k)}, \;
              K(a, b) = \frac{1}{2} \left( \frac{a^\top b}{\|a\| \|b\|} + 1 \right)

    with p of the teacher's features and q of the student's. The paper leaves out a sample's similarity with
    itself and adds up the terms; here, as in the released code and RepDistiller, the pairs (i, i) count too
    and the mean is taken.

    Args:
        student: ``(N, C, H, W)`` or ``(N, C)``.
        teacher: The same of the teacher; its channels, height and width may differ.
        eps: ε, in the logarithm and in the norms.

    Returns:
        Tensor: A scalar, in float32 at least.
    """
    p, q = conditional_probabilities(teacher, eps), conditional_probabilities(student, eps)
    return (p * ((p + eps) / (q + eps)).log()).mean()


@MODELS.register_module()
class PKTLoss(FeatureLoss):
    """Keeps the teacher's probabilities of neighbors in a batch; see :func:`pkt_loss`.

    Args:
        weight: RepDistiller takes 30000.
    """

    is_relational = True

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt_loss(student, teacher)
