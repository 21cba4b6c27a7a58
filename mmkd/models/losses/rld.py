"""RLD: Knowledge Distillation with Refined Logits (Sun et al., 2024)."""
import torch
from torch import Tensor

from ...registry import MODELS
from ...settings import NonNegativeFloat, Temperature
from .base import LogitLoss
from .kl import bernoulli_kl_divergence, kl_divergence
from .tensors import at_least_float32

_EXCLUDED = -1e9


def refined_divergences(student: Tensor, teacher: Tensor, labels: Tensor, confidence_temperature: float,
                        temperature: float) -> tuple[Tensor, Tensor]:
    r"""Compare the confidence in one class, and the classes that the teacher ranks below the true one.

    .. math::
        SCD &= \tau_1^2 \, KL((p_m, 1 - p_m) \, ‖ \, (q_y, 1 - q_y)), \quad m = \mathrm{argmax}_k \, t_k \\
        MCD &= \tau_2^2 \, KL(\hat p \, ‖ \, \hat q), \quad \hat p_k = p_k / \sum_{j \in C} p_j, \;
               C = \{k : t_k < t_y\}

    with p, q the softmax of the teacher's logits t and the student's logits over τ, and y the true class. In
    sample confidence distillation (SCD), the student is to be as sure of the *true* class as the teacher is
    of its best one. Masked correlation distillation (MCD) leaves out the true class and all classes that the
    teacher ranks above it; it is 0 where no class is left.

    Args:
        student: Student logits ``(N, K)``, K > 1.
        teacher: Teacher logits ``(N, K)``.
        labels: True classes ``(N,)``, int64.
        confidence_temperature: τ₁ > 0.
        temperature: τ₂ > 0.

    Returns:
        tuple[Tensor, Tensor]: SCD and MCD, ``(N,)`` each.
    """
    student, teacher, labels = at_least_float32(student), at_least_float32(teacher), labels[:, None]
    student_odds = _log_odds(student / confidence_temperature, labels)
    teacher_odds = _log_odds(teacher / confidence_temperature, teacher.argmax(dim=1, keepdim=True))
    confidence = confidence_temperature**2 * bernoulli_kl_divergence(student_odds, teacher_odds)
    excluded = teacher >= teacher.gather(1, labels)
    correlation = kl_divergence(
        student.masked_fill(excluded, _EXCLUDED), teacher.masked_fill(excluded, _EXCLUDED), temperature)
    return confidence, correlation


@MODELS.register_module()
class RLDLoss(LogitLoss):
    r"""α SCD + β MCD, see :func:`refined_divergences`.

    Args:
        alpha: α.
        beta: β.
        temperature: τ₂.
        confidence_temperature: τ₁; ``None`` takes τ₂, as in the released commands.
    """

    needs_labels = True

    def __init__(self, alpha: NonNegativeFloat = 1.0, beta: NonNegativeFloat = 8.0,
                 temperature: Temperature = 4.0, confidence_temperature: Temperature | None = None) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.confidence_temperature = confidence_temperature

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        confidence, correlation = refined_divergences(
            student, teacher, labels, self.confidence_temperature or self.temperature, self.temperature)
        return self.alpha * confidence + self.beta * correlation


def _log_odds(logits: Tensor, index: Tensor) -> Tensor:
    """Return the logit of the probability of one class against all others, ``(N, 1)``."""
    others = torch.scatter(logits, 1, index, -torch.inf)
    return logits.gather(1, index) - others.logsumexp(dim=1, keepdim=True)
