"""Whether weights and the statistics of batch norms are numbers that a network can compute with."""
from collections.abc import Mapping

from torch import Tensor

from ..errors import MMKDError


def find_invalid(weights: Mapping[str, Tensor]) -> str | None:
    """Return the first tensor that holds NaN or infinity, or a negative variance, and what it holds.

    Args:
        weights: Tensors by name, as in a ``state_dict``.

    Returns:
        str | None: For instance ``"'backbone.bn1.running_var' holds negative values"``; ``None`` if all
        tensors are valid.
    """
    for name, value in weights.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        # A finite sum, which is quick, has finite terms only.
        if not value.sum().isfinite() and not value.isfinite().all():
            return f'{name!a} holds {"NaN" if value.isnan().any() else "infinity"}'
        if name.endswith('running_var') and (value < 0).any():
            return f'{name!a} holds negative values'
    return None


def check_valid(weights: Mapping[str, Tensor], source: str) -> None:
    """Check that weights that were loaded can be computed with, see :func:`find_invalid`.

    Args:
        weights: Tensors by name.
        source: The name of the file in the message.

    Raises:
        MMKDError: If they cannot; the error names the first invalid tensor.
    """
    if problem := find_invalid(weights):
        raise MMKDError(f'The {source} is of no use: {problem}, so the network can compute nothing; take an '
                        'earlier checkpoint, or one from another source.')
