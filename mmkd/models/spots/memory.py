"""The memory of a query-based detector: its encoder's output as feature maps."""
from collections.abc import Sequence

from torch import Tensor, nn

from .recorder import HookPoint

MEMORY = 'memory'
"""The name of the spot."""


def memory_point(model: nn.Module) -> HookPoint:
    """Return the point at which the memory of a query-based detector is recorded.

    The encoder's output is a sequence of tokens. The maps that it is computed from are recorded as well,
    because they have its heights and widths.
    """
    return HookPoint(('neck' if getattr(model, 'with_neck', False) else 'backbone', 'encoder'))


def feature_levels(spot: str, calls: Sequence) -> list[Tensor]:
    """Return what was recorded at a spot as one list of features.

    Args:
        spot: The name of the spot.
        calls: The recorded outputs, of every call: tensors, or tuples of one tensor per level.

    Returns:
        list: Maps ``(N, C, H_l, W_l)`` or vectors ``(N, C)``.
    """
    if spot == MEMORY:
        return memory_maps(*calls)
    return [level for output in calls
            for level in (output if isinstance(output, (tuple, list)) else [output])]


def memory_maps(levels: Sequence[Tensor], tokens: Tensor) -> list[Tensor]:
    """Return the memory of a query-based detector as maps.

    Args:
        levels: The maps that the encoder reads, ``(N, C, H_l, W_l)``. Of several maps, detectors with one
            level (DETR, Conditional DETR and DAB-DETR) read the last.
        tokens: The encoder's output ``(N, L, C)``.

    Returns:
        list: For every level that the encoder reads, a map ``(N, C, H_l, W_l)``.
    """
    sizes = [tuple(level.shape[-2:]) for level in levels]
    if sum(height * width for height, width in sizes) != tokens.shape[1]:
        sizes = sizes[-1:]
    parts = tokens.transpose(1, 2).split([height * width for height, width in sizes], dim=2)
    return [part.unflatten(2, size).contiguous() for part, size in zip(parts, sizes, strict=True)]
