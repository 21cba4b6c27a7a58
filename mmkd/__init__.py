"""mmkd: knowledge distillation for MMDetection 3.x detectors and MMPretrain 1.x classifiers."""
from importlib.util import find_spec

from .version import __version__

_missing = [name for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain') if find_spec(name) is None]
if _missing:
    raise ImportError(
        f'mmkd needs OpenMMLab packages that are not installed: {", ".join(_missing)}. '
        'In a clone of mmkd, run `bash tools/setup_env.sh`; elsewhere, MMCV is compiled for your torch: '
        "`pip install torch torchvision 'setuptools<81' wheel ninja packaging numpy psutil`, then "
        "`pip install --no-build-isolation --no-binary onedl-mmcv 'mmkd[onedl]'`.", name='mmkd')

from . import checkpoints, datasets, engine, models  # noqa: E402,F401  (importing registers everything)
from .models.methods import *  # noqa: E402,F403

__all__ = ['__version__']
__all__ += models.methods.__all__
