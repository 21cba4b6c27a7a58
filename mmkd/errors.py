"""The one exception that mmkd raises for mistakes a user can mend."""
import difflib
from collections.abc import Iterable


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
