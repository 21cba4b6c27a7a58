"""Recording what passes through named modules during one forward pass."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Place:
    """A place in a network where tensors can be read.

    Args:
        module: Dotted name of a module, as in ``named_modules()``, or a tuple of such names (the heads of
            a cascade); what they give is recorded in the order of their calls.
        side: ``'output'``, ``'input'`` (positional arguments) or ``'call'`` (positional and keyword
            arguments, as a pair).
        index: Which element of a tuple of outputs or inputs; ``None`` takes all of it.
        last: Whether only the last call of every module counts, for modules that are used several times.
    """
    module: str | tuple[str, ...]
    side: str = 'output'
    index: int | None = None
    last: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.module, ) if isinstance(self.module, str) else self.module


class Recorder:
    """Records places of a model inside a ``with`` block; its hooks are gone after it.

    Args:
        model: The network.
        places: What to record, by the name under which it will be read.
        enough: After how many entries in all the block ends, wherever the network is by then; ``None`` lets
            it run to its end.

    After the block, ``recorder[name]`` is the list of what was seen, one entry per call of the module, and
    ``recorder.noted`` the number of all entries.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Place], enough: int | None = None) -> None:
        self._model = model
        self._places = places
        self._enough = enough
        self.noted = 0
        self._handles = []
        self._seen = {}

    def __enter__(self) -> 'Recorder':
        self._seen = {name: [] for name in self._places}
        self.noted = 0
        for name, place in self._places.items():
            for module in place.modules:
                found = self._model.get_submodule(module)
                if place.side == 'input' and getattr(found, 'inplace', False):
                    # What such a module is given is overwritten by what it gives.
                    handle = found.register_forward_pre_hook(self._copying_hook(name, place, module))
                else:
                    handle = found.register_forward_hook(self._hook(name, place, module), with_kwargs=True)
                self._handles.append(handle)
        return self

    def __exit__(self, kind: type | None = None, *_) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return kind is _Enough

    def __getitem__(self, name: str) -> list[Any]:
        return [value for _, value in self._seen[name]]

    def _hook(self, name: str, place: Place, module: str):

        def record(_, args, kwargs, output):
            seen = dict(output=output, input=args, call=(args, kwargs))[place.side]
            self._note(name, place, module, seen if place.index is None else seen[place.index])

        return record

    def _copying_hook(self, name: str, place: Place, module: str):

        def record(_, args):
            self._note(name, place, module, args[place.index or 0].clone())

        return record

    def _note(self, name: str, place: Place, module: str, value: Any) -> None:
        seen = self._seen[name]
        if place.last:
            seen[:] = [entry for entry in seen if entry[0] != module]
        seen.append((module, value))
        self.noted += 1
        if self.noted == self._enough:
            raise _Enough


class _Enough(Exception):
    """All that was asked for has been seen."""
