"""Loading checkpoint files as data: nothing in them is executed, and nothing outside an allowlist is made.

``torch.load(weights_only=True)`` does not accept additional types before torch 2.5, runs TorchScript programs
in some versions, does not verify checksums, and trusts sizes in the file. MMEngine falls back to full
unpickling if it refuses a file. So files are read by :mod:`~mmkd.checkpoints.file_formats`.
"""
import os
import pickle
from typing import Any

import torch
from mmengine.logging import print_log

from ..errors import MMKDError, escaped, one_line
from .downloads import local_file
from .file_formats import FormatError, check_format, open_regular_file, read_file
from .pickle_reader import BrokenError, RefusedError

UNSAFE_OPT_IN = 'MMKD_ALLOW_UNSAFE_CHECKPOINTS'
"""The environment variable that lets all checkpoints be unpickled without protection, if it is ``1``."""


def load_checkpoint(path: str, role: str = 'checkpoint') -> dict:
    """Load a checkpoint file without running any code in it.

    Args:
        path: Local path, or an ``https://`` address, which is first downloaded to torch hub's cache.
        role: The name of the file in messages, such as ``'teacher checkpoint'``.

    Returns:
        dict: The checkpoint as it was saved, with all tensors on the CPU. Weights at the top, or under
        ``model``, are returned under ``state_dict``.

    Raises:
        MMKDError: If the file is missing, cannot be downloaded, is truncated or damaged, is not a checkpoint,
            holds anything but tensors and plain data, or would take far more memory than its size justifies.
    """
    checkpoint = read_checkpoint(path, role)
    path = str(path)
    if 'state_dict' not in checkpoint and _are_weights(checkpoint):
        checkpoint = dict(state_dict=checkpoint)
    if 'state_dict' not in checkpoint and checkpoint.get('model') and _are_weights(checkpoint['model']):
        checkpoint = dict(checkpoint, state_dict=checkpoint['model'])  # DeiT and RepDistiller use this key
    if 'state_dict' not in checkpoint:
        names = [escaped(name) for name in list(checkpoint)[:8]]
        raise MMKDError(f'The {role} {path!r} has no "state_dict" (its entries are {sorted(names)}).')
    return checkpoint


def read_checkpoint(path: str, role: str = 'checkpoint') -> dict:
    """Load a checkpoint file like :func:`load_checkpoint`, with its entries as they are in the file."""
    path = local_file(str(path), role)
    if os.path.isdir(path) or not os.path.exists(path):
        raise MMKDError(f'The {role} {path!r} does not exist or is not a file.')
    try:
        with open_regular_file(path) as file:
            check_format(file)
            if os.environ.get(UNSAFE_OPT_IN) == '1':
                print_log(f'{UNSAFE_OPT_IN}=1: unpickling {path} without protection.', 'current', 30)
                checkpoint = torch.load(file, map_location='cpu', pickle_module=pickle, weights_only=False)
            else:
                checkpoint = read_file(file)
    except RefusedError as error:
        raise MMKDError(
            f'The {role} {path!r} holds {error} besides weights, so it was not loaded; '
            f'if you trust its author, set {UNSAFE_OPT_IN}=1 for this run.') from None
    except FormatError as error:
        raise MMKDError(f'The {role} {path!r} {error}.') from None
    except Exception as error:  # a broken file causes many types of errors
        reason = str(error) if isinstance(error, BrokenError) else one_line(error)
        raise MMKDError(f'The {role} {path!r} cannot be read; it is truncated, damaged or not a PyTorch '
                        f'checkpoint ({reason}).') from None
    if not isinstance(checkpoint, dict):
        raise MMKDError(f'The {role} {path!r} holds a {type(checkpoint).__name__}, not weights.')
    _check_names(checkpoint, f'{role} {path!r}')
    return checkpoint


def _check_names(checkpoint: dict, source: str) -> None:
    """Check names that logs and messages print: MMEngine prints those of weights as they are."""
    weights = checkpoint.get('state_dict', {})
    if not isinstance(weights, dict):
        raise MMKDError(f'The {source} has a {type(weights).__name__} as its "state_dict", not weights.')
    meta = checkpoint.get('meta') or {}
    if not isinstance(meta, dict):
        raise MMKDError(f'The {source} has a {type(meta).__name__} as its "meta", not a dict.')
    pending: list[Any] = [meta.get('dataset_meta')]
    texts = list(weights)
    for name, value in checkpoint.items():
        texts += [name, *(value if isinstance(value, dict) and _are_weights(value) else ())]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            pending += value
    for text in texts:
        if not isinstance(text, str) or not text.isprintable() or len(text) > 1000:
            raise MMKDError(f'The {source} has a name that is not printable text: {escaped(text)}.')


def _are_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def student_state_dict(checkpoint: dict) -> dict:
    """Return the weights of a checkpoint without the weights that distillation added (``mmkd.*``).

    The ``module.`` prefix of data-parallel wrappers is removed.
    """
    stripped = {key.removeprefix('module.'): value for key, value in checkpoint['state_dict'].items()}
    return {key: value for key, value in stripped.items() if not key.startswith('mmkd.')}
