"""DKD: Decoupled Knowledge Distillation (Zhao et al., CVPR 2022)."""
import torch
from torch import Tensor

from ...registry import MODELS
from ...settings import NonNegativeFloat, Temperature
from .base import LogitLoss
from .kl import bernoulli_kl_divergence, kl_divergence
from .tensors import at_least_float32


def decoupled_kl_divergence(student: Tensor, teacher: Tensor, labels: Tensor,
                            temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Decouple KL(teacher ‖ student) into the true class against the others, and the others alone.

    .. math:: TCKD = \tau^2 \, KL((p_y, 1 - p_y) \, ‖ \, (q_y, 1 - q_y)), \quad
              NCKD = \tau^2 \, KL(\hat p \, ‖ \, \hat q), \quad
              \hat p_i = p_i / (1 - p_y), \; i \neq y

    with p, q the softmax of the teacher's and the student's logits over τ, and y the true class. Equation 6
    of the paper: KD = TCKD + (1 - p_y) NCKD.

    Args:
        student: Student logits ``(N, K)``, K > 1.
        teacher: Teacher logits ``(N, K)``.
        labels: True classes ``(N,)``, int64.
        temperature: τ > 0.

    Returns:
        tuple[Tensor, Tensor]: TCKD and NCKD, ``(N,)`` each.
    """
    labels = labels[:, None]
    index = torch.arange(student.shape[1] - 1, device=student.device)
    other_classes = index + (index >= labels)
    log_odds, others = [], []
    for logits in (student, teacher):
        scaled = at_least_float32(logits) / temperature
        others.append(scaled.gather(1, other_classes))
        # p_y is the sigmoid of the log-odds, so 1 - p_y, which rounds to 0 if p_y is near 1, is not needed.
        log_odds.append(scaled.gather(1, labels) - others[-1].logsumexp(dim=1, keepdim=True))
    return temperature**2 * bernoulli_kl_divergence(*log_odds), temperature**2 * kl_divergence(*others)


@MODELS.register_module()
class DKDLoss(LogitLoss):
    r"""α TCKD + β NCKD, equation 7 of the paper; see :func:`decoupled_kl_divergence`.

    Args:
        alpha: α.
        beta: β, which depends on the pair of networks in the paper; 8 for ResNet32×4 → ResNet8×4.
        temperature: τ.
    """

    needs_labels = True

    def __init__(self, alpha: NonNegativeFloat = 1.0, beta: NonNegativeFloat = 8.0,
                 temperature: Temperature = 4.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        tckd, nckd = decoupled_kl_divergence(student, teacher, labels, self.temperature)
        return self.alpha * tckd + self.beta * nckd
