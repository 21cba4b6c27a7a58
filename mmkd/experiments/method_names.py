"""Names of methods on a command line: ``kd``, ``shake_teacher``, ``sakd:method=AT``, ``fitnet+kd``."""
import inspect
from collections.abc import Sequence

from ..errors import MMKDError, nearest_names
from ..models.methods.table import METHODS

TITLES = dict(
    student='student alone', kd='KD', kdtuned='KD†', dml='DML', sokd='SOKD', shake_student='SHAKE (student)',
    shake_teacher='SHAKE (teacher)', shake_alone='SHAKE (alone)')
"""Titles of the methods that are compared by default, in the order of tables."""
PROXIES = ('kd', 'kdtuned', 'sokd', 'shake')
"""Presets that share the settings ``comparison.proxies`` of a pair; DML needs a weight of its own."""


def ordered(methods: Sequence[str]) -> tuple[str, ...]:
    """Return methods in the order of tables, the student alone first."""
    order = [*TITLES, *(name for name in methods if name not in TITLES)]
    return tuple(name for name in order if name in methods or name == 'student')


def check_methods(methods: Sequence[str]) -> None:
    """Check that methods exist.

    Raises:
        MMKDError: If one does not exist, or its settings cannot be parsed.
    """
    presets = _presets()
    for method in methods:
        for name in [] if method in TITLES else method.split('+'):
            if any('=' not in setting for setting in name.split(':')[1:]):
                raise MMKDError(f'{name!r} is not NAME:SETTING=VALUE.')
            preset, _ = _parse(name)
            if preset not in presets:
                raise MMKDError(f'There is no method {preset!r}{nearest_names(preset, presets)}.')


def method_title(method: str) -> str:
    """Return the title of a method in tables."""
    if method in TITLES:
        return TITLES[method]
    titles = []
    for name in method.split('+'):
        preset, settings = _parse(name)
        title = TITLES.get(name.split(':')[0].lower()) or TITLES.get(preset) or _presets()[preset]
        shown = ', '.join(f'{key} {value}' if _is_number(value) else value
                          for key, value in settings.items() if key != 'placement')
        if shown:
            title = f'{title[:-1]}, {shown})' if title.endswith(')') else f'{title} ({shown})'
        titles.append(title)
    return ' + '.join(titles)


def method_settings(method: str, pair_settings: dict[str, dict], smoke: bool = False) -> dict[str, dict]:
    """Return the settings of all presets that a method's name joins.

    Args:
        method: For instance ``'shake_teacher'`` or ``'fitnet+kd'``.
        pair_settings: What the pair's config has under ``comparison``: settings by preset, and those of all
            :data:`PROXIES` under ``proxies``.
        smoke: Whether the training has a single epoch, which leaves no room for a first phase.

    Returns:
        dict: Settings by preset, in lower case.
    """
    result = {}
    for name in method.split('+'):
        preset, settings = _parse(name)
        shared = pair_settings.get('proxies', {}) if preset in PROXIES else {}
        result[preset] = {**shared, **pair_settings.get(preset, {}), **settings}
        if smoke and _phased() & {preset, str(result[preset].get('method')).lower()}:
            result[preset]['first_phase_epochs'] = 0
    return result


def _parse(name: str) -> tuple[str, dict[str, str]]:
    """Split a name into a preset, in lower case, and settings."""
    first, *words = name.split(':')
    preset, _, placement = first.lower().partition('_')
    settings = dict(placement=placement) if placement else {}
    for word in words:
        key, _, value = word.partition('=')
        settings[key] = value
    return preset, settings


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _presets() -> dict[str, str]:
    return {name.lower(): name for name in METHODS}


def _phased() -> set[str]:
    """Return the presets with a first phase of training, in lower case."""
    defaults = {name.lower(): inspect.signature(entry.cls).parameters.get('first_phase_epochs')
                for name, entry in METHODS.items()}
    return {name for name, parameter in defaults.items() if parameter and parameter.default}
