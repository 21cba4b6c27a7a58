"""Kullback-Leibler divergence of softened class probabilities (Hinton et al., 2015)."""
import torch.nn.functional as F
from torch import Tensor

from .base import at_least_float32


def kl_divergence(target: Tensor, prediction: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(target ‖ prediction) of softmax logits, one value per sample.

    .. math:: \tau^2 \sum_k p_k (\log p_k - \log q_k), \quad
              p = softmax(target/\tau), \; q = softmax(prediction/\tau)

    The factor τ² keeps the size of gradients when τ changes (Hinton et al., 2015, section 2). Computed
    in float32 at least, whatever the dtype of the logits. Gradients flow into both arguments: detach the
    one that must not move.

    Args:
        target: Logits ``(N, K)`` of the distribution that is imitated.
        prediction: Logits ``(N, K)`` of the one that imitates.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(N,)``, in nats times τ².
    """
    log_p = F.log_softmax(at_least_float32(target) / temperature, dim=-1)
    log_q = F.log_softmax(at_least_float32(prediction) / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def bernoulli_kl_divergence(target: Tensor, prediction: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(target ‖ prediction) of sigmoid logits, one value per sample.

    Every class is a yes or no of its own, and the divergences of the K of them add up:

    .. math:: \tau^2 \sum_k p_k \log\frac{p_k}{q_k} + (1 - p_k) \log\frac{1 - p_k}{1 - q_k}, \quad
              p = \sigma(target/\tau), \; q = \sigma(prediction/\tau)

    Otherwise as :func:`kl_divergence`.

    Args:
        target: Logits ``(N, K)`` of the probabilities that are imitated.
        prediction: Logits ``(N, K)`` of those that imitate.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(N,)``, in nats times τ².
    """
    t, s = at_least_float32(target) / temperature, at_least_float32(prediction) / temperature
    p = t.sigmoid()
    yes = p * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (yes + no).sum(dim=-1)
