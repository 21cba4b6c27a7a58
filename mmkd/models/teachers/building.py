"""From what a user writes about a teacher to a frozen model with its weights."""
import copy
import os

import mmengine.hub
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit, revert_sync_batchnorm
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from ...checkpoints import load_checkpoint, student_state_dict
from ...errors import MMKDError, one_line

RANDOM = 'random'


def read_teacher_config(config: str | dict) -> Config:
    """Return a teacher's whole config with the plain model under ``model``, and with a ``default_scope``.

    Args:
        config: ``'mmdet::faster_rcnn/…py'`` for a config inside an installed package, a path, or an
            inline config: a whole one, or only the model.

    Raises:
        MMKDError: If there is no such config.
    """
    if isinstance(config, str):
        if '::' not in config and not os.path.exists(config):
            raise MMKDError(f'The teacher config {config!r} does not exist (looked from {os.getcwd()}).')
        try:
            cfg = mmengine.hub.get_config(config) if '::' in config else Config.fromfile(config)
        except Exception as error:  # a config is Python, and may raise anything
            raise MMKDError(f'The teacher config {config!r} cannot be read ({one_line(error)}).') from None
    elif isinstance(config, dict):
        cfg = Config(copy.deepcopy(dict(config) if 'model' in config else dict(model=config)))
    else:
        raise MMKDError(f'teacher.config must be a path or a dict, not {type(config).__name__}.')
    if 'model' not in cfg:
        raise MMKDError(f'The teacher config {config!r} has no `model`.')
    if str(cfg.model.get('type', '')).endswith(('DetectorDistiller', 'ClassifierDistiller')):
        cfg.model = cfg.model.student  # a student of an earlier distillation teaches now
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as MMEngine's Runner does
    if 'default_scope' not in cfg:
        current = DefaultScope.get_current_instance()
        cfg.default_scope = current.scope_name if current else 'mmdet'
    return cfg


def build_teacher_model(cfg: Config, checkpoint: str | None) -> tuple[nn.Module, dict]:
    """Build a teacher under its own scope, with its weights, in eval mode and without gradients.

    Args:
        cfg: As from :func:`read_teacher_config`.
        checkpoint: Path or URL of its weights; the word ``'random'`` asks for random ones.

    Returns:
        tuple: The model, and ``meta`` of its checkpoint (empty for a random one).

    Raises:
        MMKDError: If there is no checkpoint, or it is not exactly this model's.
    """
    if not checkpoint:
        raise MMKDError("The teacher has no checkpoint: give teacher.checkpoint a path or URL, or say "
                        "checkpoint='random' if an untrained teacher is really meant.")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            model = MMENGINE_MODELS.build(_without_pretraining(cfg.model))
        except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
            raise MMKDError(f'The teacher cannot be built from its config ({one_line(error)}).') from error
        if checkpoint == RANDOM and hasattr(model, 'init_weights'):
            model.init_weights()
    meta = {}
    if checkpoint != RANDOM:
        loaded = load_checkpoint(checkpoint, role='teacher checkpoint')
        load_strictly(model, student_state_dict(loaded), f'teacher checkpoint {checkpoint!r}')
        meta = loaded.get('meta') or {}
    model = revert_sync_batchnorm(model)  # the same in eval mode, and it runs on CPU too
    model.eval()
    model.requires_grad_(False)
    return model, meta


def load_strictly(model: nn.Module, weights: dict, source: str) -> None:
    """Load weights that must be exactly those of the model.

    Batch counters (``num_batches_tracked``), which old files lack, play no part in eval mode and may be
    missing.

    Raises:
        MMKDError: Naming the first tensors that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    misshapen = [
        f'{name} is {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}' for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    fitting = {name: value for name, value in weights.items()
               if name not in own or value.shape == own[name].shape}
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if not name.endswith('num_batches_tracked')
               and (name not in weights or weights[name].shape == own[name].shape)]
    problems = [f'{kind} {_some(names)}' for kind, names in (
        ('missing', missing), ('unexpected', unexpected), ('misshapen', misshapen)) if names]
    if problems:
        raise MMKDError(f'The {source} does not fit {type(model).__name__}: {"; ".join(problems)}.')


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more


def _without_pretraining(cfg: ConfigDict) -> ConfigDict:
    """Drop ``init_cfg`` of type Pretrained everywhere: a teacher's weights come from its checkpoint."""
    cfg = copy.deepcopy(cfg)
    todo = [cfg]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            init_cfg = node.get('init_cfg')
            if isinstance(init_cfg, dict) and init_cfg.get('type') in ('Pretrained', PretrainedInit):
                node['init_cfg'] = None
            todo.extend(node.values())
        elif isinstance(node, (list, tuple)):
            todo.extend(node)
    return cfg
