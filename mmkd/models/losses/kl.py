"""Kullback-Leibler divergence of softened class distributions (Hinton et al., 2015)."""
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(target: Tensor, prediction: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(target ‖ prediction) of logits, one value per sample.

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
    if target.dtype.itemsize < 4:
        target = target.float()
    if prediction.dtype.itemsize < 4:
        prediction = prediction.float()
    log_p = F.log_softmax(target / temperature, dim=-1)
    log_q = F.log_softmax(prediction / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)
