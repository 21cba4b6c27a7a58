"""WTTM: Knowledge Distillation Based on Transformed Teacher Matching (Zheng and Yang, ICLR 2024)."""
from torch import Tensor

from ...registry import MODELS
from ...settings import Fraction
from .base import LogitLoss
from .kl import kl_divergence
from .tensors import at_least_float32


@MODELS.register_module()
class WTTMLoss(LogitLoss):
    r"""Matches a power transform of the teacher's probabilities, without a temperature for the student.

    .. math:: U_\gamma \, KL(\hat p \, ‖ \, q), \quad \hat p_k = p_k^\gamma / U_\gamma, \quad
              U_\gamma = \sum_k p_k^\gamma

    with p, q the softmax of the teacher's and the student's logits. The power transform is the softmax of the
    teacher's logits at the temperature 1/γ. The weight U of a sample is the larger the smoother its p; with
    γ = 1 it is 1, and the loss is the KL divergence. A single class has U = 1, K equal ones have
    :math:`K^{1-\gamma}`, so the loss grows with the number of classes.

    Args:
        gamma: γ, 0.2 in the released example; the paper chooses it for each pair of networks.
        weighted: Whether samples have the weight U; the method is called TTM without it.
    """

    def __init__(self, gamma: Fraction = 0.2, weighted: bool = True) -> None:
        super().__init__()
        self.gamma = gamma
        self.weighted = weighted

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        log_p = at_least_float32(teacher).log_softmax(dim=1)
        divergence = kl_divergence(student, self.gamma * log_p)
        return (self.gamma * log_p).exp().sum(dim=1) * divergence if self.weighted else divergence
