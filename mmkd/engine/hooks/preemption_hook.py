"""Ending a training in good order when a cluster, or Ctrl-C, asks for it."""
import atexit
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from ...processes import EXIT_INTERRUPTED
from ...registry import HOOKS
from ...settings import PositiveFloat
from .checkpoint_hook import CheckpointHook
from .exact_resume_hook import ExactResumeHook

SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1') if hasattr(signal, name))
"""Windows has no SIGUSR1."""


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Saves a checkpoint after the current iteration when SIGTERM, SIGUSR1 or SIGINT arrives, and exits.

    The checkpoint ``iter_N.pth`` is complete for exact resuming, and :class:`CheckpointHook` removes it once
    the next regular checkpoint has been written. The exit status is 75, which means: run again with
    ``--resume``. One process that receives a signal is enough to end all processes of the run. During
    validation, the process exits at once if nothing was trained since the last checkpoint; otherwise the
    validation is finished first. A second Ctrl-C ends the process at once.

    Args:
        interval: Seconds between the agreements of several processes on whether one of them has received a
            signal. A single process looks after every iteration.
    """

    # After the hooks that count this iteration in their state, and after a regular checkpoint.
    priority = 'LOWEST'

    def __init__(self, interval: PositiveFloat = 1.0) -> None:
        self.interval = interval
        self._received = 0
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self._agreed_at = 0.0
        self._agreed_iter = 0
        self._next_iter = 0

    def before_run(self, runner: Runner) -> None:
        # Signals of a terminal or a cluster reach the workers too, which must live until all is saved.
        for loader in _data_loaders(runner):
            loader.worker_init_fn = functools.partial(ignore_signals, initialize=loader.worker_init_fn)
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)

    def before_train(self, runner: Runner) -> None:
        self._received = 0
        self._agreed_iter = self._next_iter = runner.iter
        self._agreed_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        if runner.iter + 1 >= runner.max_iters:
            return  # the regular end saves a checkpoint
        received = self._received if get_world_size() == 1 else self._agree(runner.iter)
        if received:
            self._save_and_exit(runner, received)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence | None = None) -> None:
        hook = _checkpoint_hook(runner)
        # Processes validate different numbers of batches, so they cannot agree here. The launcher ends the
        # others, which have nothing to save.
        if self._received and hook is not None and hook.saved_iter == runner.iter:
            name = signal.Signals(self._received).name
            _tell(f'Interrupted by {name} during the validation after iteration {runner.iter}; '
                  f'{hook.last_ckpt} was saved before it; add --resume to continue.')
            raise SystemExit(EXIT_INTERRUPTED)

    def after_train(self, runner: Runner) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a worker of a data loader, which has inherited this handler
        if number == signal.SIGINT == self._received:
            raise KeyboardInterrupt
        self._received = number

    def _agree(self, iteration: int) -> int:
        """Return the signal that any process has received, or 0; only now and then, because it takes time."""
        if iteration < self._next_iter:
            return 0
        now = time.monotonic()
        pace = (iteration - self._agreed_iter) / (now - self._agreed_at)
        ahead = max(1, round(pace * self.interval))
        # The largest signal, and the smallest number of iterations until the next agreement.
        votes = torch.tensor([self._received, -ahead])
        all_reduce(votes, op='max')
        received, ahead = int(votes[0]), -int(votes[1])
        self._agreed_at, self._agreed_iter, self._next_iter = now, iteration, iteration + ahead
        return received

    def _save_and_exit(self, runner: Runner, received: int) -> NoReturn:
        reason = f'Interrupted by {signal.Signals(received).name} after iteration {runner.iter + 1}'
        hook = _checkpoint_hook(runner)
        if hook is None:
            _tell(f'{reason}; nothing was saved, because the config has no mmkd.CheckpointHook.')
        else:
            if hook.saved_iter != runner.iter + 1:
                for other in runner.hooks:
                    if isinstance(other, ExactResumeHook):
                        other.capture(runner)
                hook.save_interrupted(runner)
            _tell(f'{reason}; saved {hook.last_ckpt}; add --resume to continue.')
        barrier()  # launchers end all processes as soon as the first one ends
        # The handlers stay, because launchers do that with SIGTERM.
        raise SystemExit(EXIT_INTERRUPTED)


def ignore_signals(worker_id: int, initialize: Callable[[int], None] | None = None) -> None:
    """Initialize a worker of a data loader that leaves signals to the main process.

    Such a worker ends when it is told to, or when it notices that the main process has ended.

    Args:
        worker_id: Number of the worker.
        initialize: The function that was to initialize the worker.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if initialize is not None:
        initialize(worker_id)


def _kill_workers() -> None:
    # At exit, multiprocessing sends SIGTERM, which they ignore, and waits for them.
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for killed workers
    for child in multiprocessing.active_children():
        child.kill()


def _data_loaders(runner: Runner) -> Iterator[DataLoader]:
    for loop in (runner._train_loop, runner._val_loop):
        if isinstance(loop, BaseLoop) and isinstance(loop.dataloader, DataLoader):
            yield loop.dataloader


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _tell(message: str) -> None:
    if is_main_process():
        print_log(message, 'current', 30)
        sys.stdout.flush()
