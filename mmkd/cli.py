"""What the commands share: options, checks of configs and outputs, reporting errors."""
import argparse
import errno
import inspect
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine.config import Config, DictAction

from .apis.checks import check_keys, check_options, explained_build_errors
from .apis.config import is_distillation
from .checkpoints import use_safe_loaders
from .config_files import read_config as read_config
from .errors import MMKDError, nearest_names, one_line
from .models.distillers import DetectorDistiller
from .processes import end_by_failure, end_by_interrupt, end_by_mistake, rank_from_environment

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
               errno.ESTALE}
"""Errors of the operating system that a user can solve."""


def parse_options(words: Iterable[str], option: str = '--cfg-options') -> dict[str, Any]:
    """Parse config options as MMEngine does.

    Args:
        words: Options ``KEY=VALUE``.
        option: The option of the command line that has them, for messages.

    Returns:
        dict: Values by dotted keys.

    Raises:
        MMKDError: If a word has another form.
    """
    words = list(words)
    for word in words:
        if '=' not in word:
            raise MMKDError(f'{option}: {word!r} is not KEY=VALUE, without spaces.')
    namespace = argparse.Namespace()
    try:
        DictAction([option], 'options', nargs='+')(argparse.ArgumentParser(), namespace, words, option)
    except AssertionError as error:  # unbalanced brackets
        raise MMKDError(f'{option}: {one_line(error)}.') from None
    except RecursionError:
        raise MMKDError(f'{option}: values cannot be dicts; set their entries, as in '
                        'train_dataloader.dataset.metainfo.classes=cat,dog.') from None
    return namespace.options


def check_device(device: str | None) -> str:
    """Return the device of a command line, or the default: a GPU if there is one.

    Raises:
        MMKDError: If the device is not available.
    """
    if device is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=device)
    except Exception:  # its type depends on the build of torch
        raise MMKDError(f'--device {device!r} cannot be used here; use cpu, or cuda if there is a GPU.'
                        ) from None
    return device


def merge_options(cfg: Config, options: dict | None) -> None:
    """Change a config by the options ``KEY=VALUE`` of a command line.

    Args:
        cfg: The config; changed in place.
        options: Values by dotted keys.

    Raises:
        MMKDError: If an option would set a key that nothing reads, or the config has a misspelled key.
    """
    known = {'type', '_delete_', *inspect.signature(DetectorDistiller).parameters}
    for key in (options or {}) if is_distillation(cfg) else ():
        first, *rest = key.split('.')
        if first in ('student', 'methods', 'teacher'):
            raise MMKDError(f'A distilling config has its {first} under model: set model.{key} instead of '
                            f'{key} with --cfg-options.')
        if first == 'model' and rest and rest[0] not in known:
            if rest[0] not in cfg.model.student and (nearest := nearest_names(rest[0], known, cutoff=0.75)):
                raise MMKDError(f'--cfg-options {key}: the distiller has no {rest[0]!r}{nearest}.')
            raise MMKDError(f"The student's settings are under model.student: set "
                            f'model.student.{".".join(rest)} instead of {key} with --cfg-options.')
    check_options(cfg, options or {})
    try:
        cfg.merge_from_dict(options or {})
    except (KeyError, TypeError) as error:  # an index of a list, or a key of a value that is not a dict
        raise MMKDError(f'--cfg-options cannot be set in the config ({one_line(error)}).') from None
    check_keys(cfg)


def check_training_config(cfg: Config, path: str) -> None:
    """Check that a config has a model and training data.

    Raises:
        MMKDError: If it does not.
    """
    if not cfg.get('model') or not cfg.get('train_dataloader'):
        raise MMKDError(f'{path!r} is not a training config: it has no model or no train_dataloader.')


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; a mistake of the user ends it with one sentence and exit status 2.

    Where there are several processes, the first that fails says why and with which rank, and the others end
    in silence with the same exit status.
    """
    try:
        use_safe_loaders()
        with explained_build_errors():
            main()
    except MMKDError as error:
        end_by_mistake(error)
    except KeyboardInterrupt:
        end_by_interrupt()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            place = f' of {error.filename!r}' if error.filename else ''
            end_by_mistake(MMKDError(f'Reading or writing{place} failed ({error.strerror}).'))
        if rank_from_environment()[1] == 1:
            raise
        end_by_failure(error)


def check_folder(folder: str, name: str) -> None:
    """Make a folder, or check that files can be written into an existing folder.

    Args:
        folder: The folder.
        name: The name of the folder in messages.

    Raises:
        MMKDError: If no files can be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MMKDError(f'The {name} {folder!r} cannot be written: {error.strerror}.') from None


def check_output(path: str) -> None:
    """Check that an output file can be written, before the work that produces its content.

    Raises:
        MMKDError: If it cannot be written.
    """
    if os.path.isdir(path):
        raise MMKDError(f'The output {path!r} is a folder; it must be a file.')
    check_folder(os.path.dirname(path) or '.', 'folder of the output')
