"""The processes of a run: how a launcher starts them, and how they end when one of them fails."""
import multiprocessing
import os
import sys
import time
import traceback
from typing import NoReturn

import torch
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed as torch_dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from .errors import MMKDError

EXIT_FAILURE = 1
EXIT_MISTAKE = 2
"""The user can correct it: one sentence says how."""
EXIT_INTERRUPTED = 75
"""Interrupted and saved: run again with ``--resume``. The number is ``EX_TEMPFAIL`` of sysexits.h."""
EXIT_KILLED = 130
"""Ended at once by Ctrl-C, as shells number it."""

_LAUNCHERS: dict[str, tuple[str, str, tuple[str, ...]]] = dict(
    pytorch=('torchrun', 'bash tools/dist_train.sh', ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')),
    slurm=('srun', 'bash tools/slurm_train.sh', ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST')),
    mpi=('mpirun', 'mpirun', ('OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR')))
"""By launcher: the program that starts processes, the command for it, and the variables that it sets."""

_RANKS = (('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
          ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
          ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'))

_EXIT_CODE, _FAILURES = 'mmkd/exit_code', 'mmkd/failures'


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


def init_processes(launcher: str, env_cfg: dict | None = None) -> None:
    """Connect the processes of a distributed run, as MMEngine's Runner would do later.

    Everything that only one process does, or that the others wait for, must come after this. Without a GPU,
    which MMEngine would need, gloo connects the processes.

    Args:
        launcher: The value of ``--launcher``.
        env_cfg: The setting of the same name of a config.
    """
    if launcher == 'none' or torch_dist.is_initialized():
        return
    env_cfg = env_cfg or {}
    options = _store_of_this_start() if launcher == 'pytorch' else {}
    if launcher == 'pytorch' and not torch.cuda.is_available():
        os.environ.setdefault('LOCAL_RANK', '0')
        torch_dist.init_process_group('gloo', **options)
    else:
        set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
        options.update(env_cfg.get('dist_cfg', {}))
        init_dist(launcher, **options)


def _store_of_this_start() -> dict:
    """Return options of ``init_process_group`` that keep restarted processes apart from earlier ones.

    torchrun's store outlives a restart. Recent versions of torch use the same keys again, so that processes
    may connect to the addresses of processes that have ended, and wait for them.
    """
    if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
        return {}
    store, rank, world_size = next(torch_dist.rendezvous('env://'))
    store = torch_dist.PrefixStore(f'mmkd/start_{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
    return dict(store=store, rank=rank, world_size=world_size)


def rank_from_environment() -> tuple[int, int, int]:
    """Return this process's rank, the number of processes, and its rank on its machine.

    In contrast to ``torch.distributed`` they are known before the processes are connected.
    """
    for names in _RANKS:
        if names[0] in os.environ and names[1] in os.environ:
            rank, size, local = (int(os.environ.get(name, 0)) for name in names)
            return rank, size, local
    return 0, 1, 0


def rank_label() -> str:
    """Return ``' (rank 1 of 2)'`` for messages, or ``''`` where there is one process."""
    rank, size, _ = rank_from_environment()
    return f' (rank {rank} of {size})' if size > 1 else ''


def default_store() -> torch_dist.Store:
    """Return the key-value store through which the processes were connected."""
    return torch_dist.distributed_c10d._get_default_store()


def end_by_mistake(error: MMKDError) -> NoReturn:
    """End this process with one sentence, unless another process has failed before."""
    _end(f'\nerror{rank_label()}: {error}', EXIT_MISTAKE, error)


def end_by_failure(error: Exception) -> NoReturn:
    """End this process with a traceback, unless another process has failed before.

    A process that lost its connection, because another process ended, says only that.
    """
    label = rank_label()
    text = f'\nerror{label}:\n' + ''.join(traceback.format_exception(error)).rstrip()
    if torch_dist.is_initialized() and _is_lost_connection(error):
        text = f'\nerror{label}: the connection to another process was lost; that process ended.'
    _end(text, EXIT_FAILURE, error)


def end_by_interrupt() -> NoReturn:
    """End this process after Ctrl-C."""
    _end('\nInterrupted.', EXIT_KILLED)


def _end(text: str, code: int, error: Exception | None = None) -> NoReturn:
    _, size, _ = rank_from_environment()
    if size == 1:
        print(text, file=sys.stderr)
        sys.exit(code)
    earlier = _earlier_exit_code(code)
    if earlier is None:
        print(text, file=sys.stderr)
        if error is not None and 'TORCHELASTIC_ERROR_FILE' in os.environ:
            get_error_handler().record_exception(error)  # torchrun's report quotes it
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():  # workers of data loaders
        child.kill()
    # Python's ordinary end could wait for collectives in which the others no longer take part.
    os._exit(code if earlier is None else earlier)


def _earlier_exit_code(code: int) -> int | None:
    """Report a failure to all processes.

    Args:
        code: The exit code of this process.

    Returns:
        int or None: The exit code of the process that failed first, if this is another one.
    """
    rank, _, local_rank = rank_from_environment()
    if torch_dist.is_initialized():
        store = default_store()
        time.sleep(0.5 * (rank > 0))  # where all have the same mistake, rank 0 says it
        try:
            if store.add(_FAILURES, 1) > 1:
                store.wait([_EXIT_CODE])
                return int(store.get(_EXIT_CODE))
            store.set(_EXIT_CODE, str(code))
        except RuntimeError:  # it was in a process that has ended
            pass
        return None
    # All processes read the same files, so they find the same mistakes. The launcher ends all of them as soon
    # as the first one ends, so the others wait for that.
    time.sleep(3 * (rank > 0) + 3 * (local_rank > 0))
    return None


def _is_lost_connection(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ('connection closed by peer', 'connection reset', 'connection was closed',
                                    'broken pipe', 'connection refused', 'remote process exited'))
