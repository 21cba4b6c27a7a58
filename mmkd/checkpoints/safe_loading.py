"""Loading checkpoint files as data: nothing outside an allowlist is ever unpickled.

``torch.load(weights_only=True)`` cannot be told about further types before torch 2.5, and MMEngine
falls back to full unpickling when it refuses a file. A restricted ``pickle_module`` does the same job
on every torch that mmkd supports.
"""
import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from types import SimpleNamespace
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from torch import nn

from ..errors import MMKDError

SAFE_PREFIX = 'mmkd-safe:'
"""``load_from='mmkd-safe:PATH'`` makes MMEngine's Runner load through :func:`load_checkpoint`."""

UNSAFE_OPT_IN = 'MMKD_ALLOW_UNSAFE_CHECKPOINTS'

_ALLOWED = {
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
    'torch.storage': {'UntypedStorage'},  # never _load_from_bytes: it unpickles what it is given
}
for _core in ('numpy.core', 'numpy._core'):
    _ALLOWED[f'{_core}.multiarray'] = {'scalar'}


class _Refused(pickle.UnpicklingError):
    """A checkpoint asked for something outside the allowlist."""


_METHODS = {
    HistoryBuffer: {'current', 'max', 'mean', 'min'},
    OneCycleParamScheduler: {'_annealing_cos', '_annealing_linear'},
}


def _known_method(owner, name: str):
    """What ``getattr`` becomes: logs and schedules in a checkpoint refer to functions of their own."""
    if not isinstance(owner, type) or name not in _METHODS.get(owner, ()):
        raise _Refused(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def _plain_dtype(code, align=False, copy=False) -> np.dtype:
    """What ``numpy.dtype`` becomes: a type of numbers or text, whose state gives its byte order only."""
    dtype = np.dtype(code, copy=True) if isinstance(code, str) else None  # a type of its own
    if dtype is None or dtype.kind not in 'biufcSU':
        raise _Refused(f'numpy.dtype({code!r})')
    return dtype


def _empty_array(kind, shape, code) -> np.ndarray:
    """What NumPy's ``_reconstruct`` becomes: the state that follows it fills the array."""
    return np.ndarray((0, ), np.int8)


_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]  # in another module with each version of NumPy


def _array_over(buffer, dtype, *layout) -> np.ndarray:
    """What NumPy's ``_frombuffer`` becomes: nobody else can free these buffers."""
    if type(buffer) not in (bytes, bytearray) or not isinstance(dtype, np.dtype):
        raise _Refused(f'an array over a {type(buffer).__name__}')
    return _FROM_BUFFER(buffer, dtype, *layout)


# Never the functions themselves: getattr reaches everything, and NumPy takes a file's bytes for addresses of
# Python objects where the file can name a type of objects, or change a type.
_STAND_INS = {
    ('builtins', 'getattr'): _known_method,
    ('__builtin__', 'getattr'): _known_method,
    ('numpy', 'dtype'): _plain_dtype,
    ('numpy', 'ndarray'): None,
}
for _core in ('numpy.core', 'numpy._core'):
    _STAND_INS[f'{_core}.multiarray', '_reconstruct'] = _empty_array
    _STAND_INS[f'{_core}.numeric', '_frombuffer'] = _array_over


def _checked_state(owner, state):
    """Return the state that an object may be given; classes and functions are shared by the whole process."""
    if isinstance(owner, np.dtype) and state[1] in ('<', '>', '|', '='):
        version, _, *others = owner.__reduce__()[2]
        return (version, state[1], *others)
    if ((isinstance(owner, np.ndarray) and owner.size == 0)  # another state would free what a tensor may share
            or (type(owner) in (HistoryBuffer, OrderedDict) and isinstance(state, dict))
            or type(owner) in (torch.Tensor, nn.Parameter)):
        return state
    raise _Refused(f'a state for {type(owner).__name__}')


class _RestrictedUnpickler(pickle._Unpickler):
    """Restricts what is imported, and what is done with it; the latter only the one in Python allows."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str):
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if name not in _ALLOWED.get(module, ()):
            raise _Refused(f'{module}.{name}')
        return super().find_class(module, name)

    def load_build(self) -> None:
        self.stack[-1] = _checked_state(*self.stack[-2:])
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def load_newobj_ex(self) -> None:
        """Refuse keywords: no type above needs them, and torch's take addresses by them."""
        raise _Refused(f'{self.stack[-3]!r} with keywords')

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex


def _restricted_load(file, **kwargs):
    return _RestrictedUnpickler(file, **kwargs).load()


_RESTRICTED_PICKLE = SimpleNamespace(
    __name__='mmkd_restricted_pickle',
    Unpickler=_RestrictedUnpickler,
    UnpicklingError=pickle.UnpicklingError,
    load=_restricted_load)


def load_checkpoint(path: str, map_location='cpu', role: str = 'checkpoint') -> dict:
    """Load a checkpoint file without running anything that is inside it.

    Args:
        path: Local path, or an ``http(s)://`` address, which is downloaded to torch hub's cache first.
        map_location: As for :func:`torch.load`.
        role: How messages call the file, for instance ``'teacher checkpoint'``.

    Returns:
        dict: The checkpoint as it was saved; plain weights, or those under ``model``, are
        returned as ``state_dict``.

    Raises:
        MMKDError: If the file is missing, cannot be downloaded, is truncated or no checkpoint, or
            holds anything but tensors and plain data.
    """
    path = _local_file(str(path), role)
    if os.path.isdir(path) or not os.path.exists(path):
        raise MMKDError(f'The {role} {path!r} does not exist or is not a file.')
    if os.environ.get(UNSAFE_OPT_IN) == '1':
        print_log(f'{UNSAFE_OPT_IN}=1: unpickling {path} without protection.', 'current', 30)
        pickle_module = pickle
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
        raise MMKDError(
            f'The {role} {path!r} cannot be read, it is truncated or no PyTorch checkpoint '
            f'({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}).') from None
    if not isinstance(checkpoint, dict):
        raise MMKDError(f'The {role} {path!r} holds a {type(checkpoint).__name__}, not weights.')
    if 'state_dict' not in checkpoint and _are_weights(checkpoint):
        checkpoint = dict(state_dict=checkpoint)
    if 'state_dict' not in checkpoint and checkpoint.get('model') and _are_weights(checkpoint['model']):
        checkpoint = dict(checkpoint, state_dict=checkpoint['model'])  # as DeiT and RepDistiller call it
    if 'state_dict' not in checkpoint:
        raise MMKDError(f'The {role} {path!r} has no "state_dict" '
                        f'(its entries are {sorted(map(str, checkpoint))[:8]}).')
    return checkpoint


def _are_weights(value) -> bool:
    return isinstance(value, dict) and all(isinstance(one, torch.Tensor) for one in value.values())


def student_state_dict(checkpoint: dict) -> dict:
    """Return the weights of a checkpoint without what distillation added (``mmkd.*``).

    Also drops the ``module.`` prefix that data-parallel wrappers leave.
    """
    stripped = {key.removeprefix('module.'): value
                for key, value in checkpoint['state_dict'].items()}
    return {key: value for key, value in stripped.items() if not key.startswith('mmkd.')}


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def _local_file(path: str, role: str) -> str:
    if not path.startswith(('http://', 'https://')):
        return os.path.expanduser(path)
    # Many addresses end in the same file name.
    name = hashlib.sha256(path.encode()).hexdigest()[:8] + '-' + os.path.basename(urlparse(path).path)
    cached = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    failure = None
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not os.path.exists(cached):
        os.makedirs(os.path.dirname(cached), exist_ok=True)
        try:
            torch.hub.download_url_to_file(path, cached)
        except Exception as error:  # any network trouble
            failure = error
    barrier()
    if not os.path.exists(cached):
        raise MMKDError(f'The {role} {path} could not be downloaded ({failure}); fetch it in another '
                        'way and give the path of the local file instead.')
    return cached


@CheckpointLoader.register_scheme(prefixes=SAFE_PREFIX)
def load_from_mmkd_safe(filename, map_location=None):
    """MMEngine loader of the scheme ``mmkd-safe:``."""
    checkpoint = load_checkpoint(filename[len(SAFE_PREFIX):], map_location)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)  # Runner.resume would execute this text as a Python config
    return checkpoint
