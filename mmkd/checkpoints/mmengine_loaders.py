"""Loaders for MMEngine that read checkpoints as data."""
import os
from typing import Any

from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from ..errors import MMKDError, escaped, nearest_names
from .safe_loading import UNSAFE_OPT_IN, read_checkpoint

SAFE_PREFIX = 'mmkd-safe:'
"""``load_from='mmkd-safe:PATH'`` makes MMEngine's Runner read a file as data, also without mmkd's tools."""


def use_safe_loaders() -> None:
    """Let everything that MMEngine loads in this process be read as data, whatever its address.

    This covers resuming, ``load_from``, ``init_cfg=dict(type='Pretrained')`` and the names of published
    weights. Other callers of :func:`torch.load`, in any package, can only load weights.
    """
    known = {'': load_from_data, 'http://': load_from_data, 'https://': load_from_data,
             SAFE_PREFIX: load_from_mmkd_safe}
    known |= dict.fromkeys(_PUBLISHED, load_from_published)
    for prefix in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(prefix, known.get(prefix, load_from_elsewhere), force=True)
    if os.environ.get(UNSAFE_OPT_IN) != '1':
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def load_from_data(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint for MMEngine from a local path or an address, as data.

    Args:
        filename: The path or the address.
        map_location: Not used: tensors are returned on the CPU, and copied from there into the model.
    """
    checkpoint = read_checkpoint(filename)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)  # Runner.resume would execute this text as a Python config
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=SAFE_PREFIX)
def load_from_mmkd_safe(filename: str, map_location: Any = None) -> dict:
    """Load a checkpoint for MMEngine by the scheme ``mmkd-safe:``."""
    return load_from_data(filename[len(SAFE_PREFIX):])


def load_from_published(filename: str, map_location: Any = None) -> dict:
    """Load published weights for MMEngine by a name such as ``torchvision://resnet50``."""
    scheme, _, name = filename.partition('://')
    addresses = _PUBLISHED[f'{scheme}://']()
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name) if 'mmlab' in scheme else name
    address = addresses.get(name)
    if address is None:
        raise MMKDError(f'There are no weights {escaped(name)!r} under {scheme}://'
                        f'{nearest_names(name, addresses)}.')
    if not address.startswith(('http://', 'https://')):
        address = os.path.join(mmengine_checkpoint._get_mmengine_home(), address)
    checkpoint = load_from_data(address)
    return mmengine_checkpoint._process_mmcls_checkpoint(checkpoint) if scheme == 'mmcls' else checkpoint


_PUBLISHED = {
    'torchvision://': mmengine_checkpoint.get_torchvision_models,
    'modelzoo://': mmengine_checkpoint.get_torchvision_models,
    'open-mmlab://': mmengine_checkpoint.get_external_models,
    'openmmlab://': mmengine_checkpoint.get_external_models,
    'mmcls://': mmengine_checkpoint.get_mmcls_models,
}
"""By scheme: the function of MMEngine that returns the addresses of published weights by name."""


def load_from_elsewhere(filename: str, map_location: Any = None) -> dict:
    """Refuse addresses that can only be loaded by MMEngine's own loaders, which unpickle."""
    raise MMKDError(f'The checkpoint {filename!r} cannot be loaded as data from this kind of storage; copy '
                    'it to a local file and use its path.')
