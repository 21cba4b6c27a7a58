"""Reading config files."""
import os

from mmengine.config import Config
from mmengine.hub import get_config

from .errors import MMKDError, one_line


def read_config(path: str, name: str = 'config') -> Config:
    """Read a config file, or a config inside an installed package (``mmdet::faster_rcnn/….py``).

    Args:
        path: The file, or a package and a path inside its configs.
        name: The name of the config in messages, such as ``'teacher config'``.

    Raises:
        MMKDError: If the config does not exist or cannot be read.
    """
    if '::' not in path and not os.path.exists(path):
        raise MMKDError(f'The {name} {path!r} does not exist (looked for it in {os.getcwd()}).')
    try:
        return get_config(path) if '::' in path else Config.fromfile(path)
    except Exception as error:  # a config is Python, and may raise anything
        raise MMKDError(f'The {name} {path!r} cannot be read ({one_line(error)}).') from None
