"""Means over the processes of distributed training."""
from mmengine.dist import all_reduce
from torch import Tensor


def mean_over_ranks(total: Tensor, minimum: float = 1e-6) -> Tensor:
    """Average the total weight of the samples over all ranks.

    A loss that is divided by this mean gives every sample of the global batch the same weight, although the
    ranks may hold different numbers of samples.

    Args:
        total: The total weight on this rank, a scalar.
        minimum: Lower bound of the result, so that it can be divided by.

    Returns:
        Tensor: The mean over ranks, at least ``minimum``; a scalar.
    """
    total = total.clone()
    all_reduce(total, op='mean')
    return total.clamp(min=minimum)
