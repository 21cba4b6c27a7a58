"""Comparing nested values to the last bit."""
from collections.abc import Mapping
from typing import Any

import torch


def differences(one: Any, other: Any, path: str = '') -> list[str]:
    """Return where two nested values differ; NaN equals NaN."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and torch.equal(
            one.nan_to_num(nan=0.5), other.nan_to_num(nan=0.5))
        return [] if same else [path]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        missing = [f'{path}.{key} (only in one)' for key in one.keys() ^ other.keys()]
        return missing + [found for key in one.keys() & other.keys()
                          for found in differences(one[key], other[key], f'{path}.{key}')]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f'{path} ({len(one)} and {len(other)} items)']
        return [found for number, pair in enumerate(zip(one, other, strict=True))
                for found in differences(*pair, f'{path}[{number}]')]
    same = type(one) is type(other) and (one == other or (one != one and other != other))
    return [] if same else [f'{path} ({one!r:.200} and {other!r:.200})']
