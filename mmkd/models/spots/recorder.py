"""Recording the inputs and outputs of named modules during a forward pass."""
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...errors import MMKDError
from ..nested import tensors_in
from .hooks import module_hooks


@dataclass(frozen=True)
class HookPoint:
    """A point of a network at which tensors can be read.

    Args:
        module: Dotted name of a module, as in ``named_modules()``, or a tuple of such names (the heads of
            a cascade), which are recorded in the order of their calls.
        side: ``'output'``, ``'input'`` (positional arguments) or ``'call'`` (positional and keyword
            arguments, as a pair).
        index: Index into a tuple of outputs or inputs; ``None`` takes the whole value.
        first: Whether to record only the first call of every module, for modules that are used several times.
        last: Whether to record only the last call of every module.
        transform: What to record instead of the value: called with the module, its positional arguments and,
            for outputs, its output.
    """
    module: str | tuple[str, ...]
    side: str = 'output'
    index: int | None = None
    first: bool = False
    last: bool = False
    transform: Callable[..., Any] | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules of this point."""
        return (self.module, ) if isinstance(self.module, str) else self.module


class Recorder:
    """Records hook points of a model inside a ``with`` block; the hooks are removed at its end.

    After the block, ``recorder[name]`` is the list of recorded values, one per call of the module, and
    ``recorder.num_records`` is the number of records of all points together.

    Args:
        model: The network.
        points: The hook points to record, by the names under which they are read.
        max_records: Number of records, over all points, after which the forward pass is stopped and the block
            ends; ``None`` lets the network run to its end.
        overwritable: Names of points whose tensors may be overwritten in place, because nobody reads their
            values.

    Raises:
        MMKDError: At the end of the block, if a recorded tensor has been overwritten in place.
    """

    def __init__(self, model: nn.Module, points: Mapping[str, HookPoint], max_records: int | None = None,
                 overwritable: Collection[str] = ()) -> None:
        self._model = model
        self._points = points
        self._max_records = max_records
        self._overwritable = overwritable
        self.num_records = 0
        self._hooks = ExitStack()
        self._records: dict[str, list[_Record]] = {}

    def __enter__(self) -> 'Recorder':
        self._records = {name: [] for name in self._points}
        self.num_records = 0
        forward, forward_pre = [], []
        for name, point in self._points.items():
            for module_name in point.modules:
                module = self._model.get_submodule(module_name)
                if point.side == 'output':
                    forward.append((module, partial(self._record_output, name, module_name)))
                else:
                    forward_pre.append((module, partial(self._record_input, name, module_name)))
        self._hooks.enter_context(module_hooks(forward, forward_pre))
        return self

    def __exit__(self, kind: type | None = None, *_) -> bool:
        self._hooks.close()
        if kind in (None, _StopForward):
            self._check_versions()
        return kind is _StopForward

    def __getitem__(self, name: str) -> list[Any]:
        return [record.value for record in self._records[name]]

    def order(self) -> dict[str, int]:
        """Return when the first record of every recorded point was taken, as a number that grows."""
        return {name: records[0].number for name, records in self._records.items() if records}

    def _record_output(self, name: str, module_name: str, module: nn.Module, args: tuple,
                       output: Any) -> None:
        point = self._points[name]
        value = output if point.index is None else output[point.index]
        if point.transform is not None:
            value = point.transform(module, args, value)
        self._record(name, module_name, value)

    def _record_input(self, name: str, module_name: str, module: nn.Module, args: tuple,
                      kwargs: dict[str, Any]) -> None:
        point = self._points[name]
        value: Any = (args, kwargs) if point.side == 'call' else args
        if point.index is not None:
            value = value[point.index]
        if point.transform is not None:
            value = point.transform(module, value)
        # An in-place module overwrites its input with its output.
        if getattr(module, 'inplace', False) and isinstance(value, Tensor):
            value = value.clone()
        self._record(name, module_name, value)

    def _record(self, name: str, module_name: str, value: Any) -> None:
        point, records = self._points[name], self._records[name]
        if point.first and any(record.module == module_name for record in records):
            return
        if point.last:
            records[:] = [record for record in records if record.module != module_name]
        # Tensors of inference mode have no version; nothing that is trained could be recorded there.
        versions = [(tensor, tensor._version) for tensor in tensors_in(value) if not tensor.is_inference()]
        records.append(_Record(module_name, value, versions, self.num_records))
        self.num_records += 1
        if self.num_records == self._max_records:
            raise _StopForward

    def _check_versions(self) -> None:
        for name, records in self._records.items():
            for record in records if name not in self._overwritable else ():
                if any(tensor._version != version for tensor, version in record.versions):
                    side = 'output' if self._points[name].side == 'output' else 'input'
                    raise MMKDError(
                        f'The {side} of {record.module!r} cannot be recorded, because a later operation '
                        "overwrites it in place. Record the input of that operation's module instead, such "
                        "as an in-place ReLU, by its name with ':input' appended, or choose another spot."
                    ) from None


@dataclass(frozen=True)
class _Record:
    """The value recorded in one call of a module, its tensors with their versions, and the records before."""
    module: str
    value: Any
    versions: list[tuple[Tensor, int]]
    number: int


class _StopForward(Exception):  # noqa: N818  not an error, but the way out of a forward pass
    """Raised once all records have been taken."""
