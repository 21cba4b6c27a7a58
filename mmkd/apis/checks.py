"""Checks of whole configs: misspelled keys, and errors of other libraries while parts are built."""
import difflib
import inspect
import os
import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS, Registry, build_from_cfg
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from ..errors import MMKDError, nearest_names, one_line
from ..models.methods import Method
from ..models.methods.base import COMMON_SETTINGS


def _settings(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ('self', 'kwargs')}


TOP_LEVEL = _settings(Runner.__init__) | {
    'auto_scale_lr', 'comparison', 'custom_imports', 'data_preprocessor', 'default_scope', 'env_cfg',
    'runner_type', 'teacher', 'tta_model', 'tta_pipeline'}
"""Keys at the top of a config that MMEngine, MMDetection, MMPretrain or mmkd read."""

_LOADER = _settings(DataLoader) | {'num_batch_per_epoch'}
_LOOPS = set().union(*map(_settings, (EpochBasedTrainLoop, IterBasedTrainLoop, ValLoop, TestLoop)),
                     ['by_epoch', 'type'])
_SECTIONS = dict(
    train_dataloader=_LOADER, val_dataloader=_LOADER, test_dataloader=_LOADER,
    train_cfg=_LOOPS, val_cfg=_LOOPS, test_cfg=_LOOPS,
    optim_wrapper=_settings(OptimWrapper) | _settings(DefaultOptimWrapperConstructor) | {
        'type', 'constructor', 'student_constructor', 'extra', 'loss_scale', 'dtype', 'use_fsdp'},
    auto_scale_lr={'enable', 'base_batch_size'})
"""Keys of sections without a ``type`` that says what they are for."""

_DIGITS = '0123456789_'
_RUNNER_FILE = inspect.getfile(Runner)

_REGISTRIES = [value for value in vars(mmengine_registry).values() if isinstance(value, Registry)]


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Check that options set keys of a config that something reads.

    Args:
        cfg: The config, before the options are set.
        options: Values by dotted keys.

    Raises:
        MMKDError: If the first part of a key is unknown, or a part is a misspelled existing key.
    """
    for key in options:
        first = key.split('.')[0]
        if first not in cfg and first not in TOP_LEVEL:
            raise MMKDError(f'--cfg-options {key}: the config has no {first!r}'
                            f'{nearest_names(first, [*TOP_LEVEL, *cfg])}.')
        node: Any = dict(cfg.items())
        path = ''
        for part in key.split('.'):
            path = f'{path}.{part}'.lstrip('.')
            if not isinstance(node, Mapping):
                break
            if part not in node:
                if 'type' not in node and (correct := _misspelled(part, list(node))):
                    raise _unknown(path, correct)
                break
            node = node[part]


def check_keys(cfg: Config) -> None:
    """Check a config for misspelled keys: unknown, and a letter or two swapped letters from a known key.

    Known are the arguments of the classes that ``type`` names, and the keys of MMEngine's sections. Other
    unknown keys are rejected when the parts are built.

    Args:
        cfg: A whole config.

    Raises:
        MMKDError: Naming the key and the known key.
    """
    for key in cfg:
        if correct := _misspelled(key, TOP_LEVEL):
            raise _unknown(key, correct)
    for section, known in _SECTIONS.items():
        for key in cfg.get(section) or {}:
            if correct := _misspelled(key, known):
                raise _unknown(f'{section}.{key}', correct)
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:  # MMEngine's error does not say so
        raise MMKDError(f'There is no optimizer {kind!r}{nearest_names(kind, OPTIMIZERS.module_dict)}.')
    scope = cfg.get('default_scope') or 'mmengine'
    for path, node in _typed_nodes('', dict(cfg.items())):
        known = set().union(*map(_arguments, _find(node['type'], scope)))
        for key in node:
            if correct := _misspelled(key, known):
                raise _unknown(f'{path}.{key}', correct)


def check_hooks(cfg: Config) -> None:
    """Check that every default hook has a type.

    Raises:
        MMKDError: If one has none, because its key is misspelled.
    """
    hooks = cfg.get('default_hooks') or {}
    for name, hook in hooks.items():
        if isinstance(hook, dict) and not hook.get('type'):
            known = [other for other in hooks if other != name]
            raise MMKDError(f'`default_hooks.{name}` has no `type`{nearest_names(name, known)}.')


@contextmanager
def explained_build_errors() -> Iterator[None]:
    """Turn an error while a part of a config is built into a sentence that names the part and the error.

    The environment variable ``MMKD_DEBUG=1`` leaves the error as it is, with its traceback.

    Raises:
        MMKDError: In place of the error.
    """
    try:
        yield
    except MMKDError:
        raise
    except Exception as error:
        problem = None if os.environ.get('MMKD_DEBUG') == '1' else _build_problem(error)
        if problem is None:
            raise
        raise MMKDError(f'{problem}; MMKD_DEBUG=1 shows the traceback.') from error


def _unknown(path: str, correct: str) -> MMKDError:
    return MMKDError(f'`{path}` does not exist; the nearest name is {correct!r}.')


def _misspelled(name: str, known: Collection[str]) -> str | None:
    """Return the known name that differs from an unknown name by one letter or by two swapped letters."""
    if name in known or name in ('type', '_scope_', '_delete_'):
        return None
    for other in known:
        same = difflib.SequenceMatcher(None, name, other, autojunk=False).ratio()
        # A name with another number, such as train_cfg2, is another name.
        if same > 1 - 1.01 / max(len(name), len(other)) and name.strip(_DIGITS) != other.strip(_DIGITS):
            return other
    return None


def _typed_nodes(path: str, node: Any) -> Iterator[tuple[str, Mapping]]:
    """Yield the dicts in a config that have a ``type``, with their dotted keys."""
    if isinstance(node, Mapping):
        if 'type' in node:
            yield path, node
        children = list(node.items())
    else:
        children = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, child in children:
        yield from _typed_nodes(f'{path}.{key}' if path else str(key), child)


def _find(kind: Any, scope: str) -> list[Any]:
    """Return the classes and functions that a type may stand for."""
    if not isinstance(kind, str):
        return [kind]
    prefix, _, name = kind.rpartition('.')
    found = []
    for root in _REGISTRIES:
        for registry in (root.children.get(prefix or scope), root):
            if registry is not None:
                registry.import_from_location()
                found.append(registry.module_dict.get(name))
    return [target for target in found if target is not None]


def _arguments(target: Any) -> set[str]:
    """Return the names of the arguments of a class, with those of its bases, or of a function."""
    functions = [target]
    if isinstance(target, type):
        functions = [vars(cls)['__init__'] for cls in target.__mro__ if '__init__' in vars(cls)]
    is_method = isinstance(target, type) and issubclass(target, Method)
    names: set[str] = set(COMMON_SETTINGS) if is_method else set()
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break  # nothing is passed on to the next base
    return names


def _build_problem(error: Exception) -> str | None:
    """Return which part of a config could not be built and why; ``None`` if the error is of another kind."""
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        values, function = frame.f_locals, frame.f_code.co_name
        if frame.f_code is build_from_cfg.__code__:
            kind = values.get('obj_type')
            if kind is None:
                return f'The config has a part without a `type`: {reprlib.repr(dict(values["cfg"]))}'
            if isinstance(kind, str) and values.get('obj_cls') is None:
                registry = values['registry']
                return (f'There is no {registry.name} {kind!r} (KeyError)'
                        f'{nearest_names(kind.split(".")[-1], _registered(registry, kind))}')
            name = kind if isinstance(kind, str) else kind.__name__
            return f'{name!r} cannot be built from the config ({one_line(error)})'
        building = function.startswith(('build_', 'register_', '__init__', '_init_model_weights'))
        if building and frame.f_code.co_filename == _RUNNER_FILE:
            words = {'__init__': 'runner', '_init_model_weights': 'initial weights'}.get(
                function, function.partition('_')[2].replace('_', ' '))
            return f'The {words} cannot be built from the config ({one_line(error)})'
    return None


def _registered(registry: Registry, kind: str) -> list[str]:
    """Return the names in the scope of a type, and those of a registry and its parents."""
    names: list[str] = []
    current: Registry | None = registry
    while current is not None:
        names += [*current.module_dict, *getattr(current.children.get(kind.split('.')[0]), 'module_dict', ())]
        current = current.parent
    return names
