"""What may be inside a checkpoint, and how each kind of object is made from plain data.

The tables name the functions as they stand in files of torch, NumPy and MMEngine. None of these functions is
called with what a file says: the constructors here check every argument and build the object themselves.
"""
import re
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor, nn

from ..errors import escaped
from .pickle_reader import BrokenError, Name, PickleReader, RefusedError


@dataclass
class Storage:
    """A part of a file's storage, and the type of its elements.

    Args:
        buffer: All bytes of the storage, uint8.
        dtype: The type of the elements.
        first: The index of the first element.
        size: The number of elements.
    """

    buffer: Tensor
    dtype: torch.dtype
    first: int
    size: int


@dataclass(frozen=True)
class StorageType:
    """The type of a storage that a file names, such as ``torch.FloatStorage``."""

    dtype: torch.dtype


_DTYPES = dict(
    BFloat16Storage=torch.bfloat16, BoolStorage=torch.bool, ByteStorage=torch.uint8, CharStorage=torch.int8,
    ComplexDoubleStorage=torch.complex128, ComplexFloatStorage=torch.complex64, DoubleStorage=torch.float64,
    FloatStorage=torch.float32, HalfStorage=torch.float16, IntStorage=torch.int32, LongStorage=torch.int64,
    ShortStorage=torch.int16)


# Python


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _encode(reader: PickleReader, arguments: tuple) -> bytes:
    """Make bytes, which protocol 2 writes as a call of ``_codecs.encode``."""
    text, codec = arguments
    if type(text) is not str or codec not in ('latin1', 'latin-1'):
        raise RefusedError(f'an encoding as {escaped(codec)}')
    reader.spend(len(text))
    return text.encode('latin-1')


def _bytearray(reader: PickleReader, arguments: tuple) -> bytearray:
    content = arguments[0] if arguments else b''
    if type(content) is str:
        content = _encode(reader, arguments)
    if type(content) is not bytes:  # a number would be a length
        raise RefusedError(f'a bytearray of a {type(content).__name__}')
    reader.spend(len(content))
    return bytearray(content)


def _empty_bytes(reader: PickleReader, arguments: tuple) -> bytes:
    if arguments:
        raise RefusedError('bytes of an argument')
    return b''


def _set_of(kind: type) -> Any:

    def construct(reader: PickleReader, arguments: tuple) -> Any:
        items = arguments[0] if arguments else []
        if type(items) is not list or len(arguments) > 1:
            raise RefusedError(f'a {kind.__name__} of a {type(items).__name__}')
        reader.spend(64 * len(items))
        reader.check_keys(items)
        return kind(items)

    return construct


def _mapping_of(kind: type) -> Any:

    def construct(reader: PickleReader, arguments: tuple) -> Any:
        mapping = kind()
        items = arguments[0] if arguments else {}
        if type(items) is list:  # Python 2 writes the items of an OrderedDict as lists
            reader.spend(64 * len(items))
            reader.update(mapping, [key for key, _ in items], [value for _, value in items])
        elif type(items) is dict and len(arguments) <= 1:
            reader.spend(64 * len(items))
            mapping.update(items)
        else:
            raise RefusedError(f'a {kind.__name__} of a {type(items).__name__}')
        return mapping

    return construct


_FACTORIES = {(module, kind.__name__): kind for module in ('builtins', '__builtin__')
              for kind in (dict, float, int, list, set)}


def _defaultdict(reader: PickleReader, arguments: tuple) -> defaultdict:
    factory = arguments[0] if arguments else None
    if len(arguments) > 1 or type(factory) not in (Name, type(None)) or (
            isinstance(factory, Name) and factory.key not in _FACTORIES):
        raise RefusedError(f'a defaultdict of {factory if type(factory) is Name else type(factory).__name__}')
    return defaultdict(None if factory is None else _FACTORIES[factory.key])


def _default_factory(reader: PickleReader, arguments: tuple) -> Any:
    raise RefusedError('a call of a built-in type')


def _complex(reader: PickleReader, arguments: tuple) -> complex:
    real, imaginary = arguments
    if type(real) is not float or type(imaginary) is not float:
        raise RefusedError('a complex number of other objects')
    return complex(real, imaginary)


def _slice(reader: PickleReader, arguments: tuple) -> slice:
    if not all(part is None or type(part) is int for part in arguments):
        raise RefusedError('a slice of other objects')
    return slice(*arguments)


def _set_metadata(reader: PickleReader, owner: OrderedDict, state: Any) -> None:
    """Give a ``state_dict`` the versions of its modules."""
    if type(state) is not dict or any(name != '_metadata' for name in state):
        raise RefusedError('a state for OrderedDict')
    metadata = state.get('_metadata')
    if not isinstance(metadata, dict) or not all(
            type(name) is str and type(entry) is dict and type(entry.get('version')) in (int, type(None))
            for name, entry in metadata.items()):
        raise RefusedError('a state for OrderedDict')
    owner._metadata = metadata  # type: ignore[attr-defined]


# NumPy


def _dtype(reader: PickleReader, arguments: tuple) -> np.dtype:
    """Make a type of numbers or text; others let NumPy take addresses from the file."""
    code = arguments[0]
    if type(code) is not str or not re.fullmatch(r'[biufcSU][1-9][0-9]{0,8}', code):
        raise RefusedError(f'numpy.dtype({escaped(code)})')
    return np.dtype(code, copy=True)  # a copy, as its state is changed


def _set_byte_order(reader: PickleReader, dtype: np.dtype, state: Any) -> None:
    if type(state) is not tuple or state[1] not in ('<', '>', '|', '='):
        raise RefusedError('a state for numpy.dtype')
    version, _, *rest = dtype.__reduce__()[2]
    dtype.__setstate__((version, state[1], *rest))


def _empty_array(reader: PickleReader, arguments: tuple) -> np.ndarray:
    """Make the array that is filled by its state, which follows."""
    return np.ndarray((0, ), np.int8)


def _fill_array(reader: PickleReader, array: np.ndarray, state: Any) -> None:
    """Fill an array once; a second time would free memory that may be shared."""
    if type(state) is not tuple or len(state) != 5 or array.size or array.dtype != np.int8:
        raise RefusedError('a state for numpy.ndarray')
    _, shape, dtype, by_column, content = state
    if type(content) is not bytes or not _fits(content, dtype, shape):
        raise RefusedError('a state for numpy.ndarray')
    reader.spend(len(content))
    array.__setstate__((1, shape, dtype, bool(by_column), content))


def _fits(content: bytes | bytearray, dtype: Any, shape: Any) -> bool:
    """Whether bytes are exactly the elements of an array."""
    if not isinstance(dtype, np.dtype) or type(shape) is not tuple or len(shape) > 32:
        return False
    number = 1
    for length in shape:
        if not _is_index(length):
            return False
        number *= length
    return number * dtype.itemsize == len(content)


def _array_over(reader: PickleReader, arguments: tuple) -> np.ndarray:
    """Make an array from bytes in the file, as protocol 5 writes it."""
    content, dtype, shape, order = arguments
    if type(content) not in (bytes, bytearray) or not _fits(content, dtype, shape):
        raise RefusedError('an array over other objects')
    if order not in ('C', 'F'):
        raise RefusedError('an array in an unknown order')
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _scalar(reader: PickleReader, arguments: tuple) -> Any:
    dtype, content = arguments
    if type(content) is not bytes or not _fits(content, dtype, ()):
        raise RefusedError('a NumPy number of other objects')
    return np.frombuffer(content, dtype)[0]


# MMEngine


def _history(reader: PickleReader, arguments: tuple) -> HistoryBuffer:
    if arguments:
        raise RefusedError('a HistoryBuffer with arguments')
    return HistoryBuffer()


def _fill_history(reader: PickleReader, history: HistoryBuffer, state: Any) -> None:
    """Set the two arrays; the functions for statistics, which a file names too, are those of the class."""
    if type(state) is not dict:
        raise RefusedError('a state for HistoryBuffer')
    values: Any = state.get('_log_history')
    counts: Any = state.get('_count_history')
    length = state.get('max_length')
    if not (type(values) is type(counts) is np.ndarray and values.shape == counts.shape and values.ndim == 1
            and values.dtype.kind in 'iuf' and counts.dtype.kind in 'iuf' and _is_index(length)):
        raise RefusedError('a state for HistoryBuffer')
    history._log_history, history._count_history, history.max_length = values, counts, length


_ANNEALING = ('_annealing_cos', '_annealing_linear')
_STATISTICS = ('current', 'max', 'mean', 'min')
_HISTORY = 'mmengine.logging.history_buffer'
_SCHEDULER = 'mmengine.optim.scheduler.param_scheduler'


def _method(reader: PickleReader, arguments: tuple) -> Any:
    """Look up a method, which protocol 2 writes as a call of ``getattr``."""
    owner, name = arguments
    if type(owner) is Name and type(name) is str:
        if owner.key == (_HISTORY, 'HistoryBuffer') and name in _STATISTICS:
            return getattr(HistoryBuffer, name)
        if owner.key == (_SCHEDULER, 'OneCycleParamScheduler') and name in _ANNEALING:
            return getattr(OneCycleParamScheduler, name)
    owner_name = owner if type(owner) is Name else type(owner).__name__
    raise RefusedError(f'getattr({owner_name}, {escaped(name)})')


def _uncallable(reader: PickleReader, arguments: tuple) -> Any:
    raise RefusedError('a call of a class')


# torch


def _tensor(reader: PickleReader, arguments: tuple) -> Tensor:
    """Make a tensor, the arguments of ``torch._utils._rebuild_tensor_v2``."""
    storage, offset, size, stride = arguments[:4]
    requires_grad = arguments[4] if len(arguments) > 4 else False
    if type(storage) is not Storage or type(requires_grad) is not bool or any(arguments[6:]):
        raise RefusedError('a tensor of an unknown kind')
    size, stride = tuple(size), tuple(stride)
    if not (len(size) == len(stride) <= 64 and _is_index(offset) and all(map(_is_index, (*size, *stride)))):
        raise BrokenError('a tensor has an impossible shape')
    number, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        number, last = number * length, last + (length - 1) * step
    if (number and last >= storage.size) or offset > storage.size:
        raise BrokenError('a tensor is larger than its storage')
    reader.spend_tensor(number * storage.dtype.itemsize)
    tensor = torch.empty((0, ), dtype=storage.dtype)
    tensor.set_(storage.buffer.untyped_storage(), storage.first + offset, size, stride)
    return tensor.requires_grad_(requires_grad)


def _parameter(reader: PickleReader, arguments: tuple) -> nn.Parameter:
    tensor, requires_grad = arguments[:2]
    if type(tensor) is not Tensor or type(requires_grad) is not bool:
        raise RefusedError('a parameter of an unknown kind')
    return nn.Parameter(tensor, requires_grad)


def _parameter_with_state(reader: PickleReader, arguments: tuple) -> nn.Parameter:
    parameter, state = _parameter(reader, arguments), arguments[3]
    if type(state) is not dict or not all(
            type(name) is str and name.isidentifier() and not hasattr(parameter, name) for name in state):
        raise RefusedError('a state for Parameter')
    vars(parameter).update(state)
    return parameter


def _size(reader: PickleReader, arguments: tuple) -> torch.Size:
    (lengths, ) = arguments
    if type(lengths) is not tuple or not all(map(_is_index, lengths)):
        raise RefusedError('a torch.Size of other objects')
    reader.spend(8 * len(lengths))
    return torch.Size(lengths)


def _device(reader: PickleReader, arguments: tuple) -> torch.device:
    kind, *index = arguments
    if kind not in ('cpu', 'cuda', 'mps', 'npu', 'mlu', 'musa', 'xpu') or index not in [
            [], *([number] for number in range(64))]:
        raise RefusedError(f'torch.device({escaped(kind)})')
    return torch.device(kind, *index)


def _layout(reader: PickleReader, arguments: tuple) -> torch.layout:
    if arguments != ('torch.strided', ):
        raise RefusedError('a layout that is not torch.strided')
    return torch.strided


# The tables

VALUES: dict[tuple[str, str], Any] = {('torch', name): StorageType(dtype) for name, dtype in _DTYPES.items()}
VALUES |= {('torch.storage', 'UntypedStorage'): StorageType(torch.uint8)}
VALUES |= {('torch', str(dtype).removeprefix('torch.')): dtype for dtype in _DTYPES.values()}
VALUES |= {(_SCHEDULER, f'OneCycleParamScheduler.{name}'): getattr(OneCycleParamScheduler, name)
           for name in _ANNEALING}
VALUES |= {(_HISTORY, f'HistoryBuffer.{name}'): getattr(HistoryBuffer, name) for name in _STATISTICS}

CONSTRUCTORS: dict[tuple[str, str], Any] = {
    ('_codecs', 'encode'): _encode,
    ('collections', 'Counter'): _mapping_of(Counter),
    ('collections', 'OrderedDict'): _mapping_of(OrderedDict),
    ('collections', 'defaultdict'): _defaultdict,
    ('numpy', 'dtype'): _dtype,
    ('numpy', 'ndarray'): _uncallable,
    (_HISTORY, 'HistoryBuffer'): _history,
    (_SCHEDULER, 'OneCycleParamScheduler'): _uncallable,
    ('torch', 'Size'): _size,
    ('torch', 'device'): _device,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    ('torch._utils', '_rebuild_parameter_with_state'): _parameter_with_state,
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch.serialization', '_get_layout'): _layout,
}
CONSTRUCTORS |= dict.fromkeys(_FACTORIES, _default_factory)
for _module in ('builtins', '__builtin__'):
    CONSTRUCTORS |= {
        (_module, 'bytearray'): _bytearray, (_module, 'bytes'): _empty_bytes, (_module, 'complex'): _complex,
        (_module, 'frozenset'): _set_of(frozenset), (_module, 'getattr'): _method,
        (_module, 'set'): _set_of(set), (_module, 'slice'): _slice}
for _core in ('numpy.core', 'numpy._core'):  # NumPy 1 and 2
    CONSTRUCTORS |= {
        (f'{_core}.multiarray', '_reconstruct'): _empty_array, (f'{_core}.multiarray', 'scalar'): _scalar,
        (f'{_core}.numeric', '_frombuffer'): _array_over}

STATES: dict[type, Any] = {
    OrderedDict: _set_metadata, np.ndarray: _fill_array, HistoryBuffer: _fill_history}
# Each type of NumPy numbers has a class of its own for its dtype.
STATES |= {type(np.dtype(code)): _set_byte_order for code in (
    'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'f16', 'c8', 'c16', 'c32', 'S1',
    'U1', 'q', 'Q', 'l', 'L')}
