"""Recording what passes through named modules during one forward pass."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...errors import MMKDError


@dataclass(frozen=True)
class Place:
    """A place in a network where tensors can be read.

    Args:
        module: Dotted name of a module, as in ``named_modules()``, or a tuple of such names (the heads of
            a cascade); what they give is recorded in the order of their calls.
        side: ``'output'``, ``'input'`` (positional arguments) or ``'call'`` (positional and keyword
            arguments, as a pair).
        index: Which element of a tuple of outputs or inputs; ``None`` takes all of it.
        first: Whether only the first call of every module counts, for modules that are used several times.
        last: Whether only the last one does.
    """
    module: str | tuple[str, ...]
    side: str = 'output'
    index: int | None = None
    first: bool = False
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

    Raises:
        MMKDError: When the block ends, if something that was seen has been overwritten in place since.
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
                if place.side == 'output':
                    handle = found.register_forward_hook(self._hook(name, place, module))
                else:
                    hook = self._pre_hook(name, place, module, copies=getattr(found, 'inplace', False))
                    handle = found.register_forward_pre_hook(hook, with_kwargs=True)
                self._handles.append(handle)
        return self

    def __exit__(self, kind: type | None = None, *_) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind in (None, _Enough):
            self._check_versions()
        return kind is _Enough

    def __getitem__(self, name: str) -> list[Any]:
        return [entry.value for entry in self._seen[name]]

    def _hook(self, name: str, place: Place, module: str):

        def record(_, args, output):
            self._note(name, place, module, output if place.index is None else output[place.index])

        return record

    def _pre_hook(self, name: str, place: Place, module: str, copies: bool):

        def record(_, args, kwargs):
            seen = (args, kwargs) if place.side == 'call' else args
            if place.index is not None:
                seen = seen[place.index]
            # What such a module is given is overwritten by what it gives.
            self._note(name, place, module, seen.clone() if copies and isinstance(seen, Tensor) else seen)

        return record

    def _note(self, name: str, place: Place, module: str, value: Any) -> None:
        seen = self._seen[name]
        if place.first and any(entry.module == module for entry in seen):
            return
        if place.last:
            seen[:] = [entry for entry in seen if entry.module != module]
        # Tensors of inference mode have no version; nothing that is trained could be recorded there.
        versions = [(tensor, tensor._version) for tensor in _tensors(value) if not tensor.is_inference()]
        seen.append(_Entry(module, value, versions))
        self.noted += 1
        if self.noted == self._enough:
            raise _Enough

    def _check_versions(self) -> None:
        for name, seen in self._seen.items():
            for entry in seen:
                if any(tensor._version != version for tensor, version in entry.versions):
                    what = 'is given' if self._places[name].side != 'output' else 'gives'
                    raise MMKDError(
                        f'What {entry.module!r} {what} cannot be recorded, since the next operation '
                        "overwrites it in place: name that operation's module with ':input' behind it, "
                        'such as an in-place ReLU, or another spot.') from None


@dataclass(frozen=True)
class _Entry:
    """What was seen in one call of a module, and its tensors as they were then."""
    module: str
    value: Any
    versions: list[tuple[Tensor, int]]


class _Enough(Exception):
    """All that was asked for has been seen."""


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, (tuple, list)) else []
