"""Standardization of logits, as in SHAKE's released code."""
import math

import torch.nn.functional as F
from torch import Tensor


def standardize_logits(logits: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Give the logits of every sample mean 0 and standard deviation π.

    .. math:: \pi \, (z - mean(z)) / \sqrt{var(z) + \epsilon}

    A layer norm over classes without learned parameters (Li and Jin, NeurIPS 2022, released code: 3.1415).

    Args:
        logits: Shape ``(N, K)``.
        eps: ε.

    Returns:
        Tensor: Shape ``(N, K)``.
    """
    return math.pi * F.layer_norm(logits, logits.shape[-1:], eps=eps)
