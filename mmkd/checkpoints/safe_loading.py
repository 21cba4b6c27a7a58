"""Loading checkpoint files as data: nothing outside an allowlist is ever unpickled.

``torch.load(weights_only=True)`` does not accept additional types before torch 2.5, and MMEngine falls back
to full unpickling if it refuses a file. A restricted ``pickle_module`` works with all supported versions of
torch.
"""
import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from torch import nn

from ..errors import MMKDError, one_line

SAFE_PREFIX = 'mmkd-safe:'
"""``load_from='mmkd-safe:PATH'`` makes MMEngine's Runner load through :func:`load_checkpoint`."""

UNSAFE_OPT_IN = 'MMKD_ALLOW_UNSAFE_CHECKPOINTS'

_ALLOWED: dict[str, set[str]] = {
    'builtins': {'bytearray', 'bytes', 'complex', 'dict', 'frozenset', 'list', 'set', 'slice', 'tuple'},
    '__builtin__': {'bytearray', 'bytes', 'complex', 'dict', 'frozenset', 'list', 'set', 'slice', 'tuple'},
    'collections': {'Counter', 'OrderedDict', 'defaultdict'},
    '_codecs': {'encode'},
    'mmengine.logging.history_buffer': {'HistoryBuffer'},
    'mmengine.optim.scheduler.param_scheduler': {'OneCycleParamScheduler'},
    'torch': {
        'BFloat16Storage', 'BoolStorage', 'ByteStorage', 'CharStorage', 'DoubleStorage',
        'FloatStorage', 'HalfStorage', 'IntStorage', 'LongStorage', 'ShortStorage', 'Size', 'device',
        'bfloat16', 'bool', 'float16', 'float32', 'float64', 'int16', 'int32', 'int64', 'int8',
        'uint8', 'Tensor'
    },
    'torch._utils': {
        '_rebuild_parameter', '_rebuild_parameter_with_state', '_rebuild_tensor',
        '_rebuild_tensor_v2'
    },
    'torch.nn.parameter': {'Parameter'},
    'torch.serialization': {'_get_layout'},
    'torch.storage': {'UntypedStorage'},  # never _load_from_bytes, which unpickles its argument
}
for _core in ('numpy.core', 'numpy._core'):
    _ALLOWED[f'{_core}.multiarray'] = {'scalar'}


class _Refused(pickle.UnpicklingError):
    """A checkpoint refers to something outside the allowlist."""


_METHODS = {
    HistoryBuffer: {'current', 'max', 'mean', 'min'},
    OneCycleParamScheduler: {'_annealing_cos', '_annealing_linear'},
}


def _known_method(owner: Any, name: str) -> Any:
    """Replace ``getattr``: logs and schedules in a checkpoint refer to methods of their classes."""
    if not isinstance(owner, type) or name not in _METHODS.get(owner, ()):
        raise _Refused(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def _plain_dtype(code: Any, align: bool = False, copy: bool = False) -> np.dtype:
    """Replace ``numpy.dtype``: only numbers and text, with a state that defines the byte order only."""
    dtype = np.dtype(code, copy=True) if isinstance(code, str) else None  # a copy, as its state is changed
    if dtype is None or dtype.kind not in 'biufcSU':
        raise _Refused(f'numpy.dtype({code!r})')
    return dtype


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Replace NumPy's ``_reconstruct``: the array is filled by its state, which follows."""
    return np.ndarray((0, ), np.int8)


_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]  # its module depends on the version of NumPy


def _array_over(buffer: Any, dtype: Any, *layout) -> np.ndarray:
    """Replace NumPy's ``_frombuffer``: only over buffers that nothing else can free."""
    if type(buffer) not in (bytes, bytearray) or not isinstance(dtype, np.dtype):
        raise _Refused(f'an array over a {type(buffer).__name__}')
    return _FROM_BUFFER(buffer, dtype, *layout)


# Replacements of functions that are not safe: getattr reaches everything, and NumPy interprets the bytes of a
# file as addresses of Python objects if the file can name a dtype of objects, or change a dtype.
_REPLACEMENTS: dict[tuple[str, str], Callable | None] = {
    ('builtins', 'getattr'): _known_method,
    ('__builtin__', 'getattr'): _known_method,
    ('numpy', 'dtype'): _plain_dtype,
    ('numpy', 'ndarray'): None,
}
for _core in ('numpy.core', 'numpy._core'):
    _REPLACEMENTS[f'{_core}.multiarray', '_reconstruct'] = _empty_array
    _REPLACEMENTS[f'{_core}.numeric', '_frombuffer'] = _array_over


def _checked_state(owner: Any, state: Any) -> Any:
    """Return the state that an object may get; classes and functions are shared by the whole process."""
    if isinstance(owner, np.dtype) and state[1] in ('<', '>', '|', '='):
        version, _, *rest = owner.__reduce__()[2]
        return (version, state[1], *rest)
    # A second state of an array would free memory that a tensor may share.
    if ((isinstance(owner, np.ndarray) and owner.size == 0)
            or (type(owner) in (HistoryBuffer, OrderedDict) and isinstance(state, dict))
            or type(owner) in (torch.Tensor, nn.Parameter)):
        return state
    raise _Refused(f'a state for {type(owner).__name__}')


_LOAD_BUILD: Callable[..., None] = pickle._Unpickler.dispatch[pickle.BUILD[0]]


class _RestrictedUnpickler(pickle._Unpickler):
    """Restricts imports, and what is done with them; only the unpickler in Python allows the latter."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REPLACEMENTS:
            return _REPLACEMENTS[module, name]
        if name not in _ALLOWED.get(module, ()):
            raise _Refused(f'{module}.{name}')
        return super().find_class(module, name)

    def load_build(self) -> None:
        self.stack[-1] = _checked_state(*self.stack[-2:])
        _LOAD_BUILD(self)

    dispatch[pickle.BUILD[0]] = load_build

    def load_newobj_ex(self) -> None:
        """Refuse keywords: no allowed type needs them, and some types of torch accept addresses in them."""
        raise _Refused(f'{self.stack[-3]!r} with keywords')

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex


def _restricted_load(file: BinaryIO, **kwargs) -> Any:
    return _RestrictedUnpickler(file, **kwargs).load()


_RESTRICTED_PICKLE = SimpleNamespace(
    __name__='mmkd_restricted_pickle',
    Unpickler=_RestrictedUnpickler,
    UnpicklingError=pickle.UnpicklingError,
    load=_restricted_load)


def load_checkpoint(path: str, map_location: Any = 'cpu', role: str = 'checkpoint') -> dict:
    """Load a checkpoint file without running any code in it.

    Args:
        path: Local path, or an ``http(s)://`` address, which is first downloaded to torch hub's cache.
        map_location: See :func:`torch.load`.
        role: The name of the file in messages, such as ``'teacher checkpoint'``.

    Returns:
        dict: The checkpoint as it was saved. Weights at the top, or under ``model``, are returned under
        ``state_dict``.

    Raises:
        MMKDError: If the file is missing, cannot be downloaded, is truncated, is not a checkpoint, or holds
            anything but tensors and plain data.
    """
    path = _local_file(str(path), role)
    if os.path.isdir(path) or not os.path.exists(path):
        raise MMKDError(f'The {role} {path!r} does not exist or is not a file.')
    if os.environ.get(UNSAFE_OPT_IN) == '1':
        print_log(f'{UNSAFE_OPT_IN}=1: unpickling {path} without protection.', 'current', 30)
        pickle_module: Any = pickle
    else:
        pickle_module = _RESTRICTED_PICKLE
    if _is_torchscript(path):
        raise MMKDError(f'The {role} {path!r} is a TorchScript program, not a file of weights.')
    try:
        checkpoint = torch.load(
            path, map_location=map_location, pickle_module=pickle_module, weights_only=False)
    except _Refused as error:
        raise MMKDError(
            f'The {role} {path!r} holds {error} besides weights, so it was not loaded; '
            f'if you trust its author, set {UNSAFE_OPT_IN}=1 for this run.') from None
    except Exception as error:  # torch raises many types for broken files
        raise MMKDError(f'The {role} {path!r} cannot be read; it is truncated or not a PyTorch checkpoint '
                        f'({one_line(error)}).') from None
    if not isinstance(checkpoint, dict):
        raise MMKDError(f'The {role} {path!r} holds a {type(checkpoint).__name__}, not weights.')
    if 'state_dict' not in checkpoint and _are_weights(checkpoint):
        checkpoint = dict(state_dict=checkpoint)
    if 'state_dict' not in checkpoint and checkpoint.get('model') and _are_weights(checkpoint['model']):
        checkpoint = dict(checkpoint, state_dict=checkpoint['model'])  # DeiT and RepDistiller use this key
    if 'state_dict' not in checkpoint:
        raise MMKDError(f'The {role} {path!r} has no "state_dict" '
                        f'(its entries are {sorted(map(str, checkpoint))[:8]}).')
    return checkpoint


def _are_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def student_state_dict(checkpoint: dict) -> dict:
    """Return the weights of a checkpoint without the weights that distillation added (``mmkd.*``).

    The ``module.`` prefix of data-parallel wrappers is removed.
    """
    stripped = {key.removeprefix('module.'): value for key, value in checkpoint['state_dict'].items()}
    return {key: value for key, value in stripped.items() if not key.startswith('mmkd.')}


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def _local_file(path: str, role: str) -> str:
    if not path.startswith(('http://', 'https://')):
        return os.path.expanduser(path)
    # Different addresses may end in the same file name.
    name = hashlib.sha256(path.encode()).hexdigest()[:8] + '-' + os.path.basename(urlparse(path).path)
    cached = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    failure: Exception | None = None
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not os.path.exists(cached):
        os.makedirs(os.path.dirname(cached), exist_ok=True)
        try:
            torch.hub.download_url_to_file(path, cached)
        except Exception as error:  # any problem of the network
            failure = error
    barrier()
    if not os.path.exists(cached):
        raise MMKDError(f'The {role} {path} could not be downloaded ({failure}); download it yourself and '
                        'use the path of the local file instead.')
    return cached


@CheckpointLoader.register_scheme(prefixes=SAFE_PREFIX)
def load_from_mmkd_safe(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint for MMEngine by the scheme ``mmkd-safe:``."""
    checkpoint = load_checkpoint(filename[len(SAFE_PREFIX):], map_location)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)  # Runner.resume would execute this text as a Python config
    return checkpoint
