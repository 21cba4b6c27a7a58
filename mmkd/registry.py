"""mmkd's registries: children of MMEngine's, under the scope ``mmkd``.

What is registered in them checks its settings, see :mod:`mmkd.settings`.
"""
from collections.abc import Callable, Iterable
from typing import Any

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry as _Registry

from .errors import MMKDError, SettingError, nearest_names, one_line
from .settings import checked


class Registry(_Registry):
    """A registry whose classes and functions check their arguments; see MMEngine's ``Registry``."""

    def register_module(self, name: str | list[str] | None = None, force: bool = False,
                        module: Any = None) -> Any:
        if module is not None:
            return super().register_module(name, force, checked(module))
        register: Callable = super().register_module(name, force)
        return lambda module: register(checked(module))


DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope='mmkd', locations=['mmkd.datasets'])
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='mmkd', locations=['mmkd.datasets'])
FUNCTIONS = _Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope='mmkd', locations=['mmkd.engine'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmkd', locations=['mmkd.engine'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmkd', locations=['mmkd.engine'])
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmkd', locations=['mmkd.models'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_CONSTRUCTORS,
    scope='mmkd',
    locations=['mmkd.engine'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmkd', locations=['mmkd.datasets'])


def build_checked(cfg: dict, base: type | tuple[type, ...], role: str, key: str,
                  known: Iterable[str] | None = None) -> Any:
    """Build a module of a certain kind from a user's config.

    Args:
        cfg: The config.
        base: The class that the module must be derived from, or several such classes.
        role: What such a module is called in error messages, such as ``'proxy'``.
        key: The key of ``cfg`` in the config that contains it.
        known: The types of such modules, for error messages; by default all that are derived from ``base``.

    Raises:
        MMKDError: If there is no such module, one of its settings is wrong, or it is of another kind.
    """
    kind = cfg.get('type')
    if known is None:
        known = [name for name, module in MODELS.module_dict.items()
                 if isinstance(module, type) and issubclass(module, base)]
    if kind is None:
        raise MMKDError(f'`{key}` needs a `type`, the name of a {role}; known names are {", ".join(known)}.')
    if isinstance(kind, str) and MODELS.get(kind) is None:
        raise MMKDError(f'There is no {role} {kind!r}{nearest_names(kind.split(".")[-1], known)}; '
                        f'known names are {", ".join(known)}.')
    try:
        module = MODELS.build(cfg)
    except SettingError as error:
        raise error.inside(key) from None
    except (KeyError, TypeError) as error:
        raise MMKDError(f'`{key}` has a wrong setting ({one_line(error)}).') from None
    if not isinstance(module, base):
        raise MMKDError(f'{kind!r} is a {type(module).__name__}, not a {role}.')
    return module
