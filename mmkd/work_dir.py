"""The work directory of a training: who may use it, where training resumes, and what if its disk fails."""
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob

from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from .apis.config import safe_source
from .checkpoints import SAFE_PREFIX, latest_checkpoint, remove_partial_files, write_atomic
from .cli import DISK_ERRORS, check_folder
from .errors import MMKDError

_LOCK = '.mmkd-lock'
_LAUNCH = '.mmkd-launch'
_WAIT_FOR_LOCK = 15.0
"""Seconds. The data loading workers of a training that was killed keep its lock until they notice, which
takes them up to 5 s."""


def requested_checkpoint(cfg: Config, argument: str | None) -> str | None:
    """Return from where a training should be resumed: ``'auto'``, a path, or ``None`` for a new training.

    Args:
        cfg: A whole training config; ``resume = True`` in it means ``--resume``.
        argument: The value of ``--resume``.

    Raises:
        MMKDError: If the value is empty.
    """
    if argument is not None:
        if not argument.strip():
            raise MMKDError('--resume has an empty value, perhaps from a variable that is not set; omit the '
                            'value to resume from the latest checkpoint in the work directory.')
        return argument
    resume, load_from = cfg.get('resume', False), cfg.get('load_from')
    if not isinstance(resume, bool):
        raise MMKDError(f'`resume` must be True or False, not {resume!r}.')
    if not resume:
        return None
    if load_from is not None and not load_from.removeprefix(SAFE_PREFIX).strip():
        raise MMKDError('The config has `resume = True` and an empty `load_from`, perhaps from a variable '
                        'that is not set; set load_from=None to resume from the latest checkpoint.')
    return load_from.removeprefix(SAFE_PREFIX) if load_from else 'auto'


def claim_work_dir(work_dir: str, resume: str | None) -> tuple[FileLock | None, str | None]:
    """Lock a work directory, and find the checkpoint from which training resumes.

    All processes of a run call this, and the main process decides for all. A process that its launcher has
    restarted resumes its own run (``torchrun --max-restarts``, requeued jobs of Slurm).

    Args:
        work_dir: The folder; it is made if it does not exist.
        resume: ``'auto'`` for the latest checkpoint, a path, or ``None`` for a new training.

    Returns:
        tuple: The lock, which must be kept until the end of the training (``None`` if this is not the main
        process), and the checkpoint or ``None``.

    Raises:
        MMKDError: If the folder cannot be written, another process trains in it, or it holds checkpoints that
            a new training would overwrite.
    """
    lock = None
    decision: list[str | None] = [None]
    if is_main_process():
        check_folder(work_dir, 'work directory')
        lock = _lock(work_dir)
        decision = [_find_checkpoint(work_dir, resume)]
        remove_partial_files(work_dir)
    broadcast_object_list(decision)
    return lock, decision[0]


def resume_from(cfg: Config, checkpoint: str | None, resume: str | None) -> None:
    """Let a training start from a checkpoint.

    Args:
        cfg: A whole training config; changed in place.
        checkpoint: The checkpoint, or ``None`` to start from the beginning.
        resume: As for :func:`claim_work_dir`.
    """
    if checkpoint is not None:
        cfg.resume, cfg.load_from = True, safe_source(checkpoint)
    elif resume is not None:
        cfg.resume = False
        if is_main_process():
            print(f'There is no checkpoint in {cfg.work_dir}: the training starts from the beginning.')


@contextmanager
def disk_errors(work_dir: str) -> Iterator[None]:
    """Turn a failure of a disk into one sentence that names the last good checkpoint.

    Raises:
        MMKDError: If something in the block could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = f' to {error.filename!r}' if error.filename else ''
        last = latest_checkpoint(work_dir)
        known = (f'the last good checkpoint is {last!r}; solve this and add --resume to continue from it'
                 if last else 'there is no checkpoint yet')
        raise MMKDError(f'Writing{place} failed ({error.strerror}), so the training has ended; '
                        f'{known}.') from error


def raise_logging_errors(logger: logging.Logger) -> None:
    """Let a log file that cannot be written end the training, instead of a traceback for each line."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = _raise_again  # type: ignore[method-assign]


def _raise_again(record: logging.LogRecord) -> None:
    raise  # the exception that logging is handling


def _lock(work_dir: str) -> FileLock | None:
    lock = FileLock(os.path.join(work_dir, _LOCK))
    try:
        lock.acquire(timeout=_WAIT_FOR_LOCK)
    except Timeout:
        raise MMKDError(f'Another process trains in the work directory {work_dir!r}; wait until it has '
                        'ended, or choose another --work-dir.') from None
    except OSError as error:  # some network file systems have no locks
        print_log(f'The work directory {work_dir!r} cannot be locked ({error.strerror}): nothing prevents '
                  'another training from using it.', 'current', 30)
        return None
    return lock


def _find_checkpoint(work_dir: str, resume: str | None) -> str | None:
    last = latest_checkpoint(work_dir)
    record = os.path.join(work_dir, _LAUNCH)
    launches = _launches()
    if os.path.isfile(record):
        with open(record) as file:
            recorded = json.loads(file.read() or '[]')
        if any(restarts and launch in recorded for launch, restarts in launches.items()):
            # Older checkpoints are those of the training that this launch was asked to resume.
            is_own = last is not None and os.path.getmtime(last) >= os.path.getmtime(record)
            if is_own or resume is None:
                return last if is_own else None
            launches = {}  # the record stays as the first start has written it
    if resume is None and glob(os.path.join(escape(work_dir), '*.pth')):
        raise MMKDError(f'The work directory {work_dir!r} already holds a run '
                        f'({os.path.basename(last or "checkpoints")}); add --resume to continue it, or '
                        'choose another --work-dir.')
    if launches:
        write_atomic(json.dumps(list(launches)).encode(), record)
    return last if resume == 'auto' else resume


def _launches() -> dict[str, int]:
    """Return what started this process: names that stay the same when it is restarted, and restarts."""
    launches = {}
    # Without a rendezvous, the name is the same in all runs.
    if os.environ.get('TORCHELASTIC_RUN_ID', 'none') != 'none':
        name = f'torchrun {os.environ["TORCHELASTIC_RUN_ID"]}'
        launches[name] = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    if 'SLURM_JOB_ID' in os.environ:
        launches[f'slurm {os.environ["SLURM_JOB_ID"]}'] = int(os.environ.get('SLURM_RESTART_COUNT', 0))
    return launches
