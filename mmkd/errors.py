"""The exception that mmkd raises for mistakes that a user can correct."""
import difflib
import math
import numbers
from collections.abc import Iterable, Sequence


class MMKDError(ValueError):
    """A config, checkpoint or path does not work; the message is one sentence that says why."""


def one_line(error: Exception) -> str:
    """Return the type and the first line of an error of another library, for use in a sentence."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    line = text.strip().splitlines()[0] if text.strip() else ''
    printable = ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in line[:300])
    return f'{type(error).__name__}: {printable}'.rstrip('.')


def escaped(value: object) -> str:
    """Return a name from a file for use in a message: on one line, in ASCII, and at most 100 characters long.

    Args:
        value: The name; of anything that is not text, only the type is returned.
    """
    if not isinstance(value, str):
        return f'a {type(value).__name__}'
    line = ascii(value[:1000])[1:-1]
    return line if len(line) <= 100 else f'{line[:99]}…'


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Return ``'; the nearest names are …'`` for an error message, or ``''``.

    Args:
        name: The name that the user wrote.
        known: The names that exist.
    """
    by_lower = {known_name.lower(): known_name for known_name in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)
    if not nearest:
        return ''
    return '; the nearest names are ' + ', '.join(repr(by_lower[lower]) for lower in nearest)


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
        MMKDError: If the setting is not one of the choices.
    """
    if value not in choices:
        raise MMKDError(f'`{name}` must be one of {choices}, not {value!r}.')
