"""The exception that mmkd raises for mistakes that a user can correct."""
import difflib
from collections.abc import Iterable


class MMKDError(ValueError):
    """A config, checkpoint or path does not work; the message is one sentence that says why."""


class SettingError(MMKDError):
    """A setting is unknown, missing or wrong.

    Args:
        owner: What the setting belongs to, such as the name of a class.
        key: The name of the setting.
        problem: The end of the sentence, such as ``'must be a string, not 3'``.
        path: The setting's key in the config, such as ``'model.methods.kd.temperature'``, where it is known.
    """

    def __init__(self, owner: str, key: str, problem: str, path: str | None = None) -> None:
        super().__init__(f'`{path}` {problem}.' if path else f'`{key}` of {owner} {problem}.')
        self.owner = owner
        self.key = key
        self.problem = problem
        self.path = path

    def inside(self, path: str) -> 'SettingError':
        """Return the error with the key of the config that contains the setting."""
        parts = [part for part in (path, self.path or self.key) if part]
        return SettingError(self.owner, self.key, self.problem, '.'.join(parts))


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


def nearest_names(name: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """Return ``'; the nearest names are …'`` for an error message, or ``''``.

    Args:
        name: The name that the user wrote.
        known: The names that exist.
        cutoff: How similar names must be, from 0 to 1.
    """
    by_lower = {known_name.lower(): known_name for known_name in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=cutoff)
    if not nearest:
        return ''
    return '; the nearest names are ' + ', '.join(repr(by_lower[lower]) for lower in nearest)
