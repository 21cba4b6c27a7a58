"""Standardization of logits, as in SHAKE's released code."""
import math

import torch.nn.functional as F
from torch import Tensor


def standardize_logits(logits: Tensor, eps: float = 1e-7) -> Tensor:
    r"""Scale the logits of every sample to mean 0 and standard deviation π.

    .. math:: \pi \, (z - mean(z)) / \sqrt{var(z) + \epsilon}

    This is a layer norm over classes without learned parameters (Li and Jin, NeurIPS 2022; the released code
    has 3.1415 for π).

    Args:
        logits: Logits ``(N, K)``.
        eps: ε.

    Returns:
        Tensor: Logits ``(N, K)``.
    """
    return math.pi * F.layer_norm(logits, logits.shape[-1:], eps=eps)
