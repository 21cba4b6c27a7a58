"""Recording what passes through named modules during one forward pass."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...errors import MMKDError


@dataclass(frozen=True)
class HookPoint:
    """A point in a network where tensors can be read.

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
    """Records points of a model inside a ``with`` block; its hooks are gone after it.

    Args:
        model: The network.
        points: What to record, by the name under which it will be read.
        enough: After how many entries in all the block ends, wherever the network is by then; ``None`` lets
            it run to its end.

    After the block, ``recorder[name]`` is the list of what was seen, one entry per call of the module, and
    ``recorder.num_records`` the number of all entries.

    Raises:
        MMKDError: When the block ends, if something that was seen has been overwritten in place since.
    """

    def __init__(self, model: nn.Module, points: Mapping[str, HookPoint], enough: int | None = None) -> None:
        self._model = model
        self._points = points
        self._enough = enough
        self.num_records = 0
        self._handles = []
        self._seen = {}

    def __enter__(self) -> 'Recorder':
        self._seen = {name: [] for name in self._points}
        self.num_records = 0
        for name, point in self._points.items():
            for module in point.modules:
                found = self._model.get_submodule(module)
                if point.side == 'output':
                    handle = found.register_forward_hook(self._hook(name, point, module))
                else:
                    hook = self._pre_hook(name, point, module, copies=getattr(found, 'inplace', False))
                    handle = found.register_forward_pre_hook(hook, with_kwargs=True)
                self._handles.append(handle)
        return self

    def __exit__(self, kind: type | None = None, *_) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind in (None, _StopForward):
            self._check_versions()
        return kind is _StopForward

    def __getitem__(self, name: str) -> list[Any]:
        return [entry.value for entry in self._seen[name]]

    def _hook(self, name: str, point: HookPoint, module: str):

        def record(_, args, output):
            self._record(name, point, module, output if point.index is None else output[point.index])

        return record

    def _pre_hook(self, name: str, point: HookPoint, module: str, copies: bool):

        def record(_, args, kwargs):
            seen = (args, kwargs) if point.side == 'call' else args
            if point.index is not None:
                seen = seen[point.index]
            # What such a module is given is overwritten by what it gives.
            self._record(name, point, module, seen.clone() if copies and isinstance(seen, Tensor) else seen)

        return record

    def _record(self, name: str, point: HookPoint, module: str, value: Any) -> None:
        seen = self._seen[name]
        if point.first and any(entry.module == module for entry in seen):
            return
        if point.last:
            seen[:] = [entry for entry in seen if entry.module != module]
        # Tensors of inference mode have no version; nothing that is trained could be recorded there.
        versions = [(tensor, tensor._version) for tensor in _tensors(value) if not tensor.is_inference()]
        seen.append(_Entry(module, value, versions))
        self.num_records += 1
        if self.num_records == self._enough:
            raise _StopForward

    def _check_versions(self) -> None:
        for name, seen in self._seen.items():
            for entry in seen:
                if any(tensor._version != version for tensor, version in entry.versions):
                    what = 'is given' if self._points[name].side != 'output' else 'gives'
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


class _StopForward(Exception):  # noqa: N818  no error, but the way out of a forward pass
    """All that was asked for has been seen."""


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, (tuple, list)) else []
