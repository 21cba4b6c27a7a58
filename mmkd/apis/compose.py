"""Turning a stock config into a distilling one."""
from mmengine.config import Config, ConfigDict

from ..errors import MMKDError, nearest_names
from ..models.methods import PRESETS
from .config import is_distillation


def compose_distillation(cfg: Config, method: str, teacher: str | dict | None = None,
                         teacher_checkpoint: str | None = None) -> Config:
    """Wrap the model of a stock training config in a distiller.

    Args:
        cfg: A stock MMDetection config; changed in place.
        method: A preset's name in any case, such as ``'shake'``.
        teacher: The teacher's config; only ``'dml'`` works without one.
        teacher_checkpoint: Its weights, or ``'random'``.

    Returns:
        Config: ``cfg``, which can be saved, read and edited like any other.

    Raises:
        MMKDError: If there is no such method, or the config distils already.
    """
    if is_distillation(cfg):
        raise MMKDError('The config distils already; give a stock config to --distill.')
    presets = {name.lower(): name for name in PRESETS}
    if method.lower() not in presets:
        raise MMKDError(f'There is no method {method!r}{nearest_names(method, presets)}; '
                        f'known are {", ".join(sorted(presets))}.')
    cfg.model = ConfigDict(
        type='mmkd.DetectorDistiller',
        student=cfg.model,
        methods={method.lower(): dict(type=f'mmkd.{presets[method.lower()]}')})
    if teacher is not None:
        cfg.model.teacher = ConfigDict(config=teacher, checkpoint=teacher_checkpoint)
    return cfg
