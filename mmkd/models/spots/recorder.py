"""Recording what passes through named modules during one forward pass."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Place:
    """A place in a network where tensors can be read.

    Args:
        module: Dotted name of a module, as in ``named_modules()``.
        side: ``'output'`` or ``'input'`` (positional arguments).
        index: Which element of a tuple of outputs or inputs; ``None`` takes the whole output.
    """
    module: str
    side: str = 'output'
    index: int | None = None


class Recorder:
    """Records places of a model inside a ``with`` block; its hooks are gone after it.

    Args:
        model: The network.
        places: What to record, by the name under which it will be read.

    After the block, ``recorder[name]`` is the list of what was seen, one entry per call of the module.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Place]) -> None:
        self._model = model
        self._places = places
        self._handles = []
        self._seen = {}

    def __enter__(self) -> 'Recorder':
        self._seen = {name: [] for name in self._places}
        for name, place in self._places.items():
            module = self._model.get_submodule(place.module)
            self._handles.append(module.register_forward_hook(self._hook(name, place)))
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __getitem__(self, name: str) -> list[Any]:
        return self._seen[name]

    def _hook(self, name: str, place: Place):

        def record(module, inputs, output):
            seen = output if place.side == 'output' else inputs
            self._seen[name].append(seen if place.index is None else seen[place.index])

        return record
