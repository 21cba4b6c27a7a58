"""What the command line tools share: arguments, checks of configs and outputs, reporting errors."""
import argparse
import errno
import inspect
import os
import tempfile
from collections.abc import Callable

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


class OptionsAction(DictAction):
    """MMEngine's action for ``KEY=VALUE``, with an error for words that have another form."""

    def __call__(self, parser, namespace, values, option_string=None):
        for word in values:
            if '=' not in word:
                parser.error(f'{option_string}: {word!r} is not KEY=VALUE, without spaces')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:  # unbalanced brackets
            parser.error(f'{option_string}: {error}')


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers of at least ``least``."""

    def number(text: str) -> int:
        if not text.lstrip('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a whole number of at least {least}, not {text!r}')
        return int(text)

    return number


def device(text: str) -> str:
    """Check, as an argument type, that a device is available."""
    try:
        torch.empty(0, device=text)
    except Exception:  # its type depends on the build of torch
        raise argparse.ArgumentTypeError(
            f'{text!r} cannot be used here; use cpu, or cuda if there is a GPU') from None
    return text


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``train.py`` and ``test.py`` share with MMDetection's tools."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
        help='override settings of the config, for instance model.student.backbone.depth=18')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


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
