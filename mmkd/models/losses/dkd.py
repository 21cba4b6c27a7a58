"""DKD: Decoupled Knowledge Distillation (Zhao et al., CVPR 2022)."""
import torch
from torch import Tensor

from ...errors import check_weight
from ...registry import MODELS
from .base import LogitLoss
from .kl import bernoulli_kl_divergence, kl_divergence
from .tensors import at_least_float32


def decoupled_kl_divergence(target: Tensor, prediction: Tensor, labels: Tensor,
                            temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""The two parts of KL(target ‖ prediction): of the true class against the rest, and among the rest.

    .. math:: TCKD = \tau^2 \, KL((p_t, 1 - p_t) \, ‖ \, (q_t, 1 - q_t)), \quad
              NCKD = \tau^2 \, KL(\hat p \, ‖ \, \hat q), \quad
              \hat p_i = p_i / (1 - p_t), \; i \neq t

    with p, q the softmax of target/τ, prediction/τ and t the true class. Equation 6 of the paper:
    KD = TCKD + (1 - p_t) NCKD.

    Args:
        target: Logits ``(N, K)`` of the distribution that is imitated; K > 1.
        prediction: Logits ``(N, K)`` of the one that imitates.
        labels: True classes ``(N,)``, int64.
        temperature: τ > 0.

    Returns:
        tuple[Tensor, Tensor]: TCKD and NCKD, ``(N,)`` each.
    """
    labels = labels[:, None]
    index = torch.arange(target.shape[1] - 1, device=target.device)
    rest_index = index + (index >= labels)
    log_odds, rest = [], []
    for logits in (target, prediction):
        scaled = at_least_float32(logits) / temperature
        rest.append(scaled.gather(1, rest_index))
        # p_t is the sigmoid of these: 1 - p_t, which rounds to 0 for a sure network, is never formed.
        log_odds.append(scaled.gather(1, labels) - rest[-1].logsumexp(dim=1, keepdim=True))
    return temperature**2 * bernoulli_kl_divergence(*log_odds), temperature**2 * kl_divergence(*rest)


@MODELS.register_module()
class DKDLoss(LogitLoss):
    r"""α TCKD + β NCKD, equation 7 of the paper; see :func:`decoupled_kl_divergence`.

    Args:
        alpha: α.
        beta: β, chosen per pair in the paper; 8 for ResNet32×4 → ResNet8×4.
        temperature: τ.
    """

    needs_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        check_weight(alpha, 'alpha')
        check_weight(beta, 'beta')
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        tckd, nckd = decoupled_kl_divergence(teacher, student, labels, self.temperature)
        return self.alpha * tckd + self.beta * nckd
