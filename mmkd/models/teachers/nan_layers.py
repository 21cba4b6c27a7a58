"""Finding the layer in which a network begins to compute NaN."""
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..spots import module_hooks


@contextmanager
def record_nan_layers(model: nn.Module) -> Iterator[list[str]]:
    """Record the names of the modules whose outputs hold NaN inside the block, in the order of their calls.

    Every module costs a synchronization with the GPU, so this is for single batches.

    Args:
        model: The network.

    Yields:
        list: The names; the first of them is where NaN appears.
    """
    names: list[str] = []
    with module_hooks(forward=[(module, partial(_append_if_nan, names, name or type(model).__name__))
                               for name, module in model.named_modules()]):
        yield names


def _append_if_nan(names: list[str], name: str, module: nn.Module, args: tuple, output: Any) -> None:
    if _holds_nan(output):
        names.append(name)


def _holds_nan(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(value.isnan().any())
    if isinstance(value, dict):
        return any(_holds_nan(item) for item in value.values())
    return isinstance(value, (tuple, list)) and any(_holds_nan(item) for item in value)
