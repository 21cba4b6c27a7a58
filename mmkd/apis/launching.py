"""What the command line tools share: reading configs, starting processes, telling errors."""
import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from glob import escape, glob

import torch
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from torch import distributed as torch_dist

from ..checkpoints import latest_checkpoint
from ..errors import MMKDError, one_line


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``train.py`` and ``test.py`` have in common with MMDetection's."""
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the config, for instance model.student.backbone.depth=18')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def read_config(path: str) -> Config:
    """Read a config file, or one inside an installed package (``mmdet::faster_rcnn/…py``).

    Raises:
        MMKDError: If it does not exist or cannot be read.
    """
    try:
        return get_config(path) if '::' in path else Config.fromfile(path)
    except FileNotFoundError as error:
        raise MMKDError(f'The config {path!r} cannot be read: {error}.') from None
    except Exception as error:  # a config is Python, and may raise anything
        raise MMKDError(f'The config {path!r} cannot be read ({one_line(error)}).') from None


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; mistakes of the user end it with one sentence and exit status 2."""
    try:
        main()
    except MMKDError as error:
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'\nerror: {error}', file=sys.stderr)
        sys.exit(2)


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
    try:
        os.makedirs(work_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise MMKDError(f'The work directory {work_dir!r} cannot be written: {error.strerror}.') from None
    if not resume and glob(os.path.join(escape(work_dir), '*.pth')):
        last = latest_checkpoint(work_dir) or 'checkpoints'
        raise MMKDError(f'The work directory {work_dir!r} already holds a run ({os.path.basename(last)}); '
                        'add --resume to go on with it, or choose another --work-dir.')
