"""What the command line tools share: reading configs, starting processes, reporting errors."""
import argparse
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from glob import escape, glob

import torch
from mmengine.config import Config, DictAction
from torch import distributed as torch_dist

from .apis.checks import check_keys, check_options, explained_build_errors
from .apis.config import is_distillation
from .checkpoints import latest_checkpoint
from .config_files import read_config as read_config
from .errors import MMKDError, nearest_names, one_line
from .models.distillers import DetectorDistiller

_LAUNCHERS: dict[str, tuple[str, str, tuple[str, ...]]] = dict(
    pytorch=('torchrun', 'bash tools/dist_train.sh', ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')),
    slurm=('srun', 'bash tools/slurm_train.sh', ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST')),
    mpi=('mpirun', 'mpirun', ('OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR')))
"""By launcher: the program that starts processes, the command for it, and the variables that it sets."""


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
    """Run a tool; a mistake of the user ends it with one sentence and exit status 2."""
    try:
        with explained_build_errors():
            main()
    except MMKDError as error:
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'\nerror: {error}', file=sys.stderr)
        sys.exit(2)


def check_launcher(launcher: str) -> None:
    """Check that this process was started by the program that belongs to a launcher.

    Raises:
        MMKDError: If it was not.
    """
    program, command, variables = _LAUNCHERS.get(launcher, ('', '', ()))
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise MMKDError(f'--launcher {launcher} is for processes that {program} starts, but {missing[0]} is '
                        f'not set; start the tool with {command}, or omit --launcher.')


def init_cpu_processes(launcher: str) -> None:
    """Initialize distributed training with gloo if there is no GPU, which MMEngine would need."""
    if launcher == 'pytorch' and not torch.cuda.is_available():
        os.environ.setdefault('LOCAL_RANK', '0')
        torch_dist.init_process_group('gloo')


def claim_work_dir(work_dir: str, resume: bool) -> None:
    """Make a work directory, or check that an existing work directory can be used.

    Raises:
        MMKDError: If it cannot be written, or holds checkpoints that a new run would overwrite.
    """
    check_folder(work_dir, 'work directory')
    if not resume and glob(os.path.join(escape(work_dir), '*.pth')):
        last = latest_checkpoint(work_dir) or 'checkpoints'
        raise MMKDError(f'The work directory {work_dir!r} already holds a run ({os.path.basename(last)}); '
                        'add --resume to continue it, or choose another --work-dir.')


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
