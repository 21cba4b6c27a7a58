"""What the command line tools share: reading configs, starting processes, telling errors."""
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

from .apis.config import is_distillation
from .checkpoints import latest_checkpoint
from .config_files import read_config as read_config
from .errors import MMKDError
from .models.distillers import DetectorDistiller

_STARTED_BY = dict(
    pytorch=('torchrun', 'bash tools/dist_train.sh', ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')),
    slurm=('srun', 'bash tools/slurm_train.sh', ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST')),
    mpi=('mpirun', 'mpirun', ('OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR')))
"""By launcher: what starts its processes, the command for that, and the variables that it sets for each."""


class OptionsAction(DictAction):
    """MMEngine's way to read ``KEY=VALUE``, that tells a word which is none."""

    def __call__(self, parser, namespace, values, option_string=None):
        for word in values:
            if '=' not in word:
                parser.error(f'{option_string}: {word!r} is not KEY=VALUE, without spaces')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:  # of brackets
            parser.error(f'{option_string}: {error}')


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers from this one on."""

    def number(text: str) -> int:
        if not text.lstrip('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a whole number from {least} on, not {text!r}')
        return int(text)

    return number


def device(text: str) -> str:
    """Check, as an argument type, that a device is there."""
    try:
        torch.empty(0, device=text)
    except Exception:  # what it is depends on how torch was built
        raise argparse.ArgumentTypeError(
            f'{text!r} cannot be used here; give cpu, or cuda where there is a GPU') from None
    return text


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``train.py`` and ``test.py`` have in common with MMDetection's."""
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
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
        options: Values by keys with dots.

    Raises:
        MMKDError: If the config distils, and an option would not reach what it means.
    """
    known = {'type', '_delete_', *inspect.signature(DetectorDistiller).parameters}
    for key in (options or {}) if is_distillation(cfg) else ():
        first, *rest = key.split('.')
        if first in ('student', 'methods', 'teacher'):
            raise MMKDError(f'A distilling config has its {first} under model: set model.{key} instead of '
                            f'{key} with --cfg-options.')
        if first == 'model' and rest and rest[0] not in known:
            raise MMKDError(f"The student's settings are under model.student: set "
                            f'model.student.{".".join(rest)} instead of {key} with --cfg-options.')
    cfg.merge_from_dict(options or {})


def check_training_config(cfg: Config, path: str) -> None:
    """Check that a config has a model and training data.

    Raises:
        MMKDError: If it has not.
    """
    if not cfg.get('model') or not cfg.get('train_dataloader'):
        raise MMKDError(f'{path!r} is no training config: it has no model or no train_dataloader.')


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; mistakes of the user end it with one sentence and exit status 2."""
    try:
        main()
    except MMKDError as error:
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'\nerror: {error}', file=sys.stderr)
        sys.exit(2)


def check_launcher(launcher: str) -> None:
    """Check that this process was started by what a launcher is for.

    Raises:
        MMKDError: If it was not.
    """
    starter, command, variables = _STARTED_BY.get(launcher, ('', '', ()))
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise MMKDError(f'--launcher {launcher} is for processes that {starter} starts, but {missing[0]} is '
                        f'not set; start it by {command}, or leave it out.')


def init_cpu_processes(launcher: str) -> None:
    """Join the other processes over gloo where there is no GPU; MMEngine's start needs one."""
    if launcher == 'pytorch' and not torch.cuda.is_available():
        os.environ.setdefault('LOCAL_RANK', '0')
        torch_dist.init_process_group('gloo')


def claim_work_dir(work_dir: str, resume: bool) -> None:
    """Make a work directory, or check that the one there may be used.

    Raises:
        MMKDError: If it cannot be written, or holds checkpoints that a new run would overwrite.
    """
    check_folder(work_dir, 'work directory')
    if not resume and glob(os.path.join(escape(work_dir), '*.pth')):
        last = latest_checkpoint(work_dir) or 'checkpoints'
        raise MMKDError(f'The work directory {work_dir!r} already holds a run ({os.path.basename(last)}); '
                        'add --resume to go on with it, or choose another --work-dir.')


def check_folder(folder: str, name: str) -> None:
    """Make a folder, or check that files can be written into the one there.

    Args:
        folder: The folder.
        name: What it is called in a message.

    Raises:
        MMKDError: If they cannot.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MMKDError(f'The {name} {folder!r} cannot be written: {error.strerror}.') from None


def check_output(path: str) -> None:
    """Check that a file can be written, before the work whose result it shall hold.

    Raises:
        MMKDError: If it cannot.
    """
    if os.path.isdir(path):
        raise MMKDError(f'The output {path!r} is a folder; give the name of a file.')
    check_folder(os.path.dirname(path) or '.', 'folder of the output')
