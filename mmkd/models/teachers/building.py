"""Building a frozen network with its weights from a teacher's config."""
import copy
from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors import DDQDETR
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit, revert_sync_batchnorm
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...checkpoints import check_valid, load_checkpoint, student_state_dict
from ...config_files import read_config
from ...errors import MMKDError, escaped, one_line

RANDOM = 'random'


def read_teacher_config(config: str | dict) -> Config:
    """Return the whole config of a teacher, with the plain model under ``model`` and a ``default_scope``.

    Args:
        config: ``'mmdet::faster_rcnn/….py'`` for a config inside an installed package, a path, or an
            inline config: either a whole config or only the model.

    Raises:
        MMKDError: If the config does not exist or has no model.
    """
    if isinstance(config, str):
        cfg = read_config(config, 'teacher config')
    elif isinstance(config, dict):
        cfg = Config(copy.deepcopy(dict(config) if 'model' in config else dict(model=config)))
    else:
        raise MMKDError(f'teacher.config must be a path or a dict, not {type(config).__name__}.')
    if 'model' not in cfg:
        raise MMKDError(f'The teacher config {config!r} has no `model`.')
    if str(cfg.model.get('type', '')).endswith(('DetectorDistiller', 'ClassifierDistiller')):
        cfg.model = cfg.model.student  # the student of an earlier distillation is the teacher now
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as MMEngine's Runner does
    if 'default_scope' not in cfg:
        current = DefaultScope.get_current_instance()
        cfg.default_scope = current.scope_name if current else 'mmdet'
    return cfg


def build_teacher_model(cfg: Config, checkpoint: str | None) -> tuple[nn.Module, dict]:
    """Build a teacher under its registry scope, with its weights, in eval mode and without gradients.

    Args:
        cfg: Config returned by :func:`read_teacher_config`.
        checkpoint: Path or URL of the weights, or ``'random'`` for random weights.

    Returns:
        tuple: The model, and ``meta`` of its checkpoint (empty for random weights).

    Raises:
        MMKDError: If there is no checkpoint, or its tensors are not exactly the tensors of the model.
    """
    if not checkpoint:
        raise MMKDError("The teacher has no checkpoint: set teacher.checkpoint to a path or URL, or to "
                        "'random' for a teacher with random weights.")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            model = MMENGINE_MODELS.build(_without_pretraining(cfg.model))
        except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
            raise MMKDError(f'The teacher cannot be built from its config ({one_line(error)}).') from error
        if checkpoint == RANDOM and hasattr(model, 'init_weights'):
            model.init_weights()
    meta: dict = {}
    if checkpoint != RANDOM:
        loaded = load_checkpoint(checkpoint, role='teacher checkpoint')
        load_strictly(model, student_state_dict(loaded), f'teacher checkpoint {checkpoint!r}')
        meta = loaded.get('meta') or {}
    model = revert_sync_batchnorm(model)  # equal in eval mode, and runs on CPU as well
    model.eval()
    model.requires_grad_(False)
    return model, meta


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must be exactly the weights of the model.

    Batch counters (``num_batches_tracked``), which old files lack, have no effect in eval mode and may be
    missing.

    Args:
        model: The network to load the weights into.
        weights: Tensors by name.
        source: The name of the file in messages.

    Raises:
        MMKDError: Naming the first tensors that are missing, unexpected or of a different shape, or the first
            tensor that holds NaN or infinity, or a negative variance.
    """
    _share_aux_branches(model, weights)
    expected = model.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise MMKDError(f'The {source} holds a {type(value).__name__} under {escaped(name)} instead of a '
                            'tensor.')
    misshapen = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    fitting = {name: value for name, value in weights.items() if name not in misshapen}
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    unexpected = [escaped(name) for name in unexpected]
    missing = [name for name in missing
               if not name.endswith('num_batches_tracked') and name not in misshapen]
    shapes = [f'{name} is {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}'
              for name in misshapen]
    problems = [f'{kind} {_listed(names)}' for kind, names in (
        ('missing', missing), ('unexpected', unexpected), ('misshapen', shapes)) if names]
    if problems:
        raise MMKDError(f'The {source} does not fit {type(model).__name__}: {"; ".join(problems)}.')
    check_valid(weights, source)


def _share_aux_branches(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Let a DDQ hold its auxiliary box branches under a second name, as it does from its first step on."""
    if isinstance(model, DDQDETR) and any(name.startswith('decoder.aux_reg_branches.') for name in weights):
        model.decoder.aux_reg_branches = model.bbox_head.aux_reg_branches


def _listed(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more


def _without_pretraining(cfg: ConfigDict) -> ConfigDict:
    """Drop every ``init_cfg`` of type Pretrained: the weights of a teacher come from its checkpoint."""
    cfg = copy.deepcopy(cfg)
    pending: list[Any] = [cfg]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            init_cfg = node.get('init_cfg')
            if isinstance(init_cfg, dict) and init_cfg.get('type') in ('Pretrained', PretrainedInit):
                node['init_cfg'] = None
            pending.extend(node.values())
        elif isinstance(node, (list, tuple)):
            pending.extend(node)
    return cfg
