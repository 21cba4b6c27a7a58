"""Turning a stock config into a distilling one."""
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from ..errors import MMKDError, nearest_names
from ..models.methods import METHODS
from .config import is_distillation, trains_classifier


def compose_distillation(cfg: Config, methods: str | Sequence[str], teacher: str | dict | None = None,
                         teacher_checkpoint: str | None = None) -> Config:
    """Wrap the model of a stock training config in a distiller.

    Args:
        cfg: A stock config of MMDetection or MMPretrain; changed in place. It may name a teacher itself, by
            ``config`` and ``checkpoint`` under ``teacher``.
        methods: A preset's name in any case, such as ``'shake'``, or several of them.
        teacher: The teacher's config, if not the one that ``cfg`` names. The peer of ``'dml'`` is built like
            it, or like the student where there is none; alone it leaves out the teacher that ``cfg`` names.
        teacher_checkpoint: Its weights, or ``'random'``.

    Returns:
        Config: ``cfg``, which can be saved, read and edited like any other.

    Raises:
        MMKDError: If there is no such method, or the config distils already.
    """
    if is_distillation(cfg):
        raise MMKDError('The config distils already; give a stock config to --distill.')
    presets = {name.lower(): name for name in METHODS}
    chosen = ConfigDict()
    for name in [methods] if isinstance(methods, str) else methods:
        if name.lower() not in presets:
            raise MMKDError(f'There is no method {name!r}{nearest_names(name, presets)}; '
                            f'known are {", ".join(sorted(presets))}.')
        chosen[name.lower()] = ConfigDict(type=f'mmkd.{presets[name.lower()]}')
    named = cfg.pop('teacher', None)
    if teacher is not None:
        named = ConfigDict(config=teacher, checkpoint=teacher_checkpoint)
    elif named and teacher_checkpoint is not None:
        named.checkpoint = teacher_checkpoint
    if named and 'dml' in chosen:
        chosen.dml.config = named.config
        if list(chosen) == ['dml'] and teacher is None:
            named = None
    cfg.model = ConfigDict(
        type='mmkd.ClassifierDistiller' if trains_classifier(cfg) else 'mmkd.DetectorDistiller',
        student=cfg.model,
        methods=chosen)
    if named:
        cfg.model.teacher = named
    return cfg
