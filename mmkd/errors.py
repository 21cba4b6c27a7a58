"""The exception that mmkd raises for mistakes that a user can correct."""
import difflib
from collections.abc import Iterable


class MMKDError(ValueError):
    """A config, checkpoint or path does not work; the message is one sentence that says why."""


def one_line(error: Exception) -> str:
    """Return the type and the first line of an error of another library, to be put into a sentence."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return f'{type(error).__name__}: {text.strip().splitlines()[0] if text.strip() else ""}'.rstrip('.')


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
