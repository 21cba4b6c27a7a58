"""Divergence of box edges that are predicted as distributions (Zheng et al., CVPR 2022)."""
from torch import Tensor

from .kl import kl_divergence


def edge_divergence(target: Tensor, prediction: Tensor, temperature: float = 10.0) -> Tensor:
    r"""KL(target ‖ prediction) of the distributions of a box's edges, one value per box.

    .. math:: \frac{1}{4} \sum_{e \in \{l, t, r, b\}} \tau^2 \, KL(softmax(target_e/\tau) ‖
              softmax(prediction_e/\tau))

    An edge's distance from the box's place is one of n+1 bins (GFL: n = ``reg_max``). The mean over edges and
    the sum over bins; LD's released code takes the mean over bins, which is this divided by n+1. Computed
    in float32 at least.

    Args:
        target: Logits ``(M, 4(n+1))``, edge by edge, of the boxes that are imitated.
        prediction: Logits ``(M, 4(n+1))`` of those that imitate.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(M,)``, in nats times τ².
    """
    edges = [logits.unflatten(-1, (4, -1)) for logits in (target, prediction)]
    return kl_divergence(*edges, temperature).mean(dim=-1)
