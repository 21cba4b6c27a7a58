"""Reading config files.

A Python config is a program. A YAML or JSON config is data: it is parsed without constructing objects, and
cannot name files or modules of Python, which MMEngine would execute.
"""
import inspect
import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.utils import import_modules_from_strings

from .errors import MMKDError, escaped, nearest_names, one_line

MODULE2PACKAGE['mmkd'] = 'mmkd'  # the packages whose configs MMEngine finds by ``PACKAGE::PATH``
SHIPPED = (Path(__file__).parent / '.mim' / 'configs').resolve()
"""The configs ``mmkd::…``; in a checkout, a link to ``configs/``."""
_DATA = ('.yml', '.yaml', '.json')
_PACKAGES = ('mmkd', 'mmdet', 'mmpretrain', 'mmcv', 'mmengine')
_MAX_VALUES = 100_000
_MAX_DEPTH = 60
_MAX_BASES = 20


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; MMEngine also writes tuples."""


_Loader.add_constructor('tag:yaml.org,2002:python/tuple',
                        lambda loader, node: tuple(loader.construct_sequence(node)))


def read_config(path: str | Path, name: str = 'config') -> Config:
    """Read a config file, or a config inside an installed package (``mmkd::….py``, ``mmdet::….py``).

    Args:
        path: The file, or a package and a path inside its configs. A file that ends with ``.py`` is executed;
            one that ends with ``.yml``, ``.yaml`` or ``.json`` is read as data.
        name: The name of the config in messages, such as ``'teacher config'``.

    Raises:
        MMKDError: If the config does not exist or cannot be read, or is data and names Python code.
    """
    path = str(path)
    if path.startswith('mmkd::'):
        path = _shipped_config(path, name)
    if '::' not in path and not os.path.exists(path):
        raise MMKDError(f'The {name} {path!r} does not exist (looked for it in {os.getcwd()}).')
    try:
        if '::' in path:
            return get_config(path)
        return _read_data(path, _MAX_BASES) if path.endswith(_DATA) else Config.fromfile(path)
    except Exception as error:  # a config is Python, and may raise anything
        reason = str(error) if isinstance(error, _NamesCodeError) else one_line(error)
        raise MMKDError(f'The {name} {path!r} cannot be read ({reason}).') from None


def _shipped_config(config: str, name: str) -> str:
    """Return the path of a config ``mmkd::…``; MMEngine would read all metafiles to find it."""
    path = config.removeprefix('mmkd::')
    if not _is_installed(config) or not (SHIPPED / path).is_file():
        known = [file.relative_to(SHIPPED).as_posix() for file in SHIPPED.rglob('*.py')]
        raise MMKDError(f'mmkd has no {name} {path!r}{nearest_names(path, known)}.')
    return str(SHIPPED / path)


class _NamesCodeError(ValueError):
    """A YAML or JSON config names code."""


def _read_data(path: str, bases_left: int) -> Config:
    with open(path, encoding='utf-8') as file:
        text = file.read()
    content = json.loads(text) if path.endswith('.json') else yaml.load(text, _Loader)
    if not isinstance(content, dict):
        raise _NamesCodeError('it holds no settings')
    _check_data(content)
    bases = content.pop('_base_', [])
    cfg = Config({}, cfg_text=text, filename=path)
    for base in bases if isinstance(bases, (list, tuple)) else [bases]:
        if bases_left <= 0:
            raise _NamesCodeError('its bases have too many bases')
        cfg.merge_from_dict(_read_base(str(base), os.path.dirname(path), bases_left - 1).to_dict())
    if imports := content.get('custom_imports'):
        import_modules_from_strings(**imports)
    cfg.merge_from_dict(content)
    return cfg


def _read_base(base: str, folder: str, bases_left: int) -> Config:
    if '::' in base:
        if not _is_installed(base):
            raise _NamesCodeError(f'its base {escaped(base)} is not a config of {", ".join(_PACKAGES)}')
        return get_config(base)
    if not base.endswith(_DATA):
        raise _NamesCodeError(f'its base {escaped(base)} may be a program; the bases of a YAML or JSON '
                              'config must be YAML or JSON too, or in an installed package')
    return _read_data(os.path.join(folder, base), bases_left)


def _is_installed(config: str) -> bool:
    """Whether a name is that of a config inside an installed package that mmkd knows."""
    package, _, path = config.partition('::')
    is_inside = '..' not in path.split('/') and not os.path.isabs(path)
    return '::' in config and package in _PACKAGES and is_inside


def _check_data(content: dict) -> None:
    """Check that a config names no Python code.

    Raises:
        _NamesCodeError: If it does.
    """
    for key, value in _items(content):
        if isinstance(value, str) and '{{' in value:
            raise _NamesCodeError('only a Python config can substitute {{…}}')
        if isinstance(value, str) and value.endswith(('.pkl', '.pickle')):
            raise _NamesCodeError(f'it names the pickle file {escaped(value)}, which may be a program')
        if isinstance(value, str) and re.search(r'(^|_)(type|constructor|fn)$', key):
            _check_type(value)
        if key == 'config' and isinstance(value, str) and not (value.endswith(_DATA) or _is_installed(value)):
            raise _NamesCodeError(f'the config {escaped(value)} that it names may be a program')
    imports = content.get('custom_imports') or {}
    if not isinstance(imports, dict):
        raise _NamesCodeError('its custom_imports are not a dict')
    modules = imports.get('imports') or []
    for module in modules if isinstance(modules, (list, tuple)) else [modules]:
        if str(module).split('.')[0] not in _PACKAGES:
            raise _NamesCodeError(f'it imports {escaped(module)}; only a Python config can import anything '
                                  f'but {", ".join(_PACKAGES)}')


def _check_type(name: str) -> None:
    """Check that MMEngine finds a type in its registries, and does not import or evaluate it."""
    match = re.fullmatch(r'(?:([a-z]+)\.)?([A-Za-z_][A-Za-z0-9_]*)', name)
    scope = match and match[1]
    if not match or (scope and scope not in _PACKAGES):
        raise _NamesCodeError(f'{escaped(name)} is not the registered name of a type')
    if scope and inspect.isroutine(getattr(import_module(scope), match[2], None)):
        raise _NamesCodeError(f'{escaped(name)} is a function')
    if not scope and find_spec(name) is not None:
        raise _NamesCodeError(f'{escaped(name)} is a module')


def _items(content: dict) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of a config; items of a list come under the key of the list."""
    pending: list[tuple[str, Any, int]] = [('', content, 0)]
    number = 0
    while pending:
        key, value, depth = pending.pop()
        number += 1
        if number > _MAX_VALUES or depth > _MAX_DEPTH:
            raise _NamesCodeError('it has too many values')
        yield key, value
        if isinstance(value, dict):
            if not all(isinstance(name, str) for name in value):
                raise _NamesCodeError('one of its keys is not text')
            pending += [(name, item, depth + 1) for name, item in value.items()]
        elif isinstance(value, (list, tuple)):
            pending += [(key, item, depth + 1) for item in value]
        elif not isinstance(value, (str, int, float, type(None))):
            raise _NamesCodeError(f'it holds {escaped(value)}')
