"""Tensors inside nested dicts, lists and tuples, such as the outputs of modules."""
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def map_floats(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to all floating point tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: map_floats(item, function) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_floats(item, function) for item in value)
    return value
