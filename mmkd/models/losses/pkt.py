"""PKT: Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas, ECCV 2018)."""
import math

import torch
from torch import Tensor

from ...registry import MODELS
from .base import RelationalFeatureLoss
from .tensors import at_least_float32


def conditional_probabilities(feature: Tensor, eps: float = 1e-7) -> Tensor:
    """Probability that a sample chooses another as its neighbor, by their cosine similarity.

    Args:
        feature: Features ``(N, C, H, W)`` or ``(N, C)``, which are flattened per sample.
        eps: Added to the norms. A sample of zeros has similarity 0 with all samples, without gradient.

    Returns:
        Tensor: Shape ``(N, N)``, with rows that sum to 1, in float32 at least.
    """
    rows = at_least_float32(feature).flatten(1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / (norm + eps).masked_fill(norm == 0, math.inf)
    with torch.autocast(rows.device.type, enabled=False):
        cosine = rows @ rows.t()
    # Rounding can result in cosines below -1, whose kernel would be negative.
    kernel = ((cosine + 1) / 2).clamp(min=0)
    return kernel / kernel.sum(dim=1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    r"""KL(teacher ‖ student) of the samples' conditional probabilities.

    .. math:: \frac{1}{N^2} \sum_{i,j} p_{j|i} \log \frac{p_{j|i} + \epsilon}{q_{j|i} + \epsilon}, \quad
              p_{j|i} = \frac{K(x_i, x_j)}{\sum_k K(x_i, x_k)}, \;
              K(a, b) = \frac{1}{2} \left( \frac{a^\top b}{\|a\| \|b\|} + 1 \right)

    with p from the teacher's features and q from the student's. The paper leaves out the similarity of a
    sample with itself and sums the terms; the released code and RepDistiller, as here, include the pairs (i,
    i) and take the mean.

    Args:
        student: Student features ``(N, C, H, W)`` or ``(N, C)``.
        teacher: Teacher features; their channels, height and width may differ.
        eps: ε, in the logarithm and in the norms.

    Returns:
        Tensor: A scalar, in float32 at least.
    """
    p = conditional_probabilities(teacher, eps)
    q = conditional_probabilities(student, eps)
    return (p * ((p + eps) / (q + eps)).log()).mean()


@MODELS.register_module()
class PKTLoss(RelationalFeatureLoss):
    """Preserves the teacher's probabilities of neighbors in a batch; see :func:`pkt_loss`.

    Args:
        weight: Loss weight; 30000 in RepDistiller.
        gather: Whether samples of all processes are related to one another, not only those of each process.
    """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt_loss(student, teacher)
