"""The one exception that mmkd raises for mistakes a user can mend."""
import difflib
import math
import numbers
from collections.abc import Iterable, Sequence


class MMKDError(ValueError):
    """A config, checkpoint or path that cannot work, told in one sentence."""


def one_line(error: Exception) -> str:
    """Return the kind and the first line of another library's error, to go into a sentence."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return f'{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else ""}'.rstrip('.')


def nearest_names(asked: str, names: Iterable[str], limit: int = 3) -> str:
    """Return ``'; the nearest names are …'`` for an error message, or ``''``.

    Args:
        asked: What the user wrote.
        names: What exists.
        limit: How many names to offer at most.
    """
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(asked.lower(), by_lower, n=limit, cutoff=0.4)
    if not found:
        return ''
    return '; the nearest names are ' + ', '.join(repr(by_lower[name]) for name in found)


def check_weight(value: float, name: str = 'weight') -> None:
    """Check that a loss weight is a finite number of at least 0.

    Args:
        value: The weight.
        name: The name of the setting in the error message.

    Raises:
        MMKDError: If the weight is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        raise MMKDError(f'`{name}` must be a finite number of at least 0, not {value!r}.')


def check_choice(value: object, choices: Sequence, name: str) -> None:
    """Check that a setting is one of the known choices.

    Args:
        value: The setting.
        choices: The known choices.
        name: The name of the setting in the error message.

    Raises:
        MMKDError: If the setting is none of the choices.
    """
    if value not in choices:
        raise MMKDError(f'`{name}` must be one of {choices}, not {value!r}.')
