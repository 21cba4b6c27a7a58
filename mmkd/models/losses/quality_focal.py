"""Quality focal loss with soft labels (CrossKD, Wang et al., CVPR 2024; BCKD, Yang et al., ICCV 2023)."""
import torch.nn.functional as F
from torch import Tensor

from .tensors import at_least_float32


def quality_focal_divergence(student: Tensor, teacher: Tensor, beta: float = 1.0) -> Tensor:
    r"""Binary cross-entropy of all classes, weighted by how much two networks differ; one value per location.

    .. math:: \sum_k |p_k - q_k|^\beta \, BCE(p_k, q_k), \quad p = \sigma(t), \; q = \sigma(s)

    The loss of GFL (Li et al., NeurIPS 2020, equation 5) with the teacher's scores as quality, for every
    class; β is 1 in CrossKD and in BCKD. It is 0 where both agree. Computed in float32 at least.

    Args:
        student: s, logits ``(M, K)`` of the predictions that imitate.
        teacher: t, logits ``(M, K)`` of the predictions that are imitated.
        beta: The exponent β.

    Returns:
        Tensor: Shape ``(M,)``.
    """
    p, logits = at_least_float32(teacher).sigmoid(), at_least_float32(student)
    entropy = F.binary_cross_entropy_with_logits(logits, p, reduction='none')
    return ((p - logits.sigmoid()).abs()**beta * entropy).sum(dim=-1)
