"""Turning a stock config into a distilling config."""
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from ..errors import MMKDError, nearest_names
from ..models.methods.table import METHODS
from .config import is_distillation, trains_classifier


def compose_distillation(cfg: Config, methods: str | Sequence[str], teacher: str | dict | None = None,
                         teacher_checkpoint: str | None = None) -> Config:
    """Wrap the model of a stock training config in a distiller.

    Args:
        cfg: A stock config of MMDetection or MMPretrain; changed in place. It may name a teacher by
            ``config`` and ``checkpoint`` under ``teacher``.
        methods: The name of a preset in upper or lower case, such as ``'shake'``, or several names.
        teacher: The teacher's config; by default, the teacher that ``cfg`` names. The peer of ``'dml'`` is
            built from this config, or from the student's config without a teacher. If DML is the only method,
            the teacher that ``cfg`` names is used for the peer only.
        teacher_checkpoint: The weights of the teacher, or ``'random'``.

    Returns:
        Config: ``cfg``, which can be saved, read and edited like any other config.

    Raises:
        MMKDError: If a method is unknown, or the config already distills.
    """
    if is_distillation(cfg):
        raise MMKDError('The config already distills; use --distill with a stock config.')
    presets = {name.lower(): name for name in METHODS}
    method_cfgs = ConfigDict()
    for name in [methods] if isinstance(methods, str) else methods:
        if name.lower() not in presets:
            raise MMKDError(f'There is no method {name!r}{nearest_names(name, presets)}; '
                            f'known are {", ".join(sorted(presets))}.')
        method_cfgs[name.lower()] = ConfigDict(type=f'mmkd.{presets[name.lower()]}')
    teacher_cfg = cfg.pop('teacher', None)
    if teacher is not None:
        teacher_cfg = ConfigDict(config=teacher, checkpoint=teacher_checkpoint)
    elif teacher_cfg and teacher_checkpoint is not None:
        teacher_cfg.checkpoint = teacher_checkpoint
    if teacher_cfg and 'dml' in method_cfgs:
        method_cfgs.dml.config = teacher_cfg.config
        if list(method_cfgs) == ['dml'] and teacher is None:
            teacher_cfg = None
    cfg.model = ConfigDict(
        type='mmkd.ClassifierDistiller' if trains_classifier(cfg) else 'mmkd.DetectorDistiller',
        student=cfg.model,
        methods=method_cfgs)
    if teacher_cfg:
        cfg.model.teacher = teacher_cfg
    return cfg
