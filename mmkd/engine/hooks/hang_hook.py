"""Telling which process hangs, and where."""
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...processes import default_store, rank_label
from ...registry import HOOKS
from ...settings import PositiveFloat


@HOOKS.register_module()
class HangHook(Hook):
    """Says which process makes no progress, and where it is.

    A process without progress prints the stack of its main thread, once, and rank 0 prints where all ranks
    are. In a distributed training all ranks stop when one does; the one that hangs is the one whose stack is
    not in a collective operation or a backward pass, or that does not answer. Training goes on if it can.

    Args:
        minutes: How long an iteration, or a phase such as start-up or the evaluation of metrics, may take.
    """

    priority = 'HIGHEST'

    def __init__(self, minutes: PositiveFloat = 30.0) -> None:
        self.minutes = minutes
        self._phase = ''
        self._since = 0.0
        self._iter = 0
        self._ended = threading.Event()

    def before_run(self, runner: Runner) -> None:
        self._begin('start-up', 0)
        self._ended.clear()
        threading.Thread(target=self._watch, args=(threading.main_thread().ident, ), daemon=True).start()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._begin('training step', runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        self._begin('loading data or saving', runner.iter)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence | None = None) -> None:
        self._begin('validation', runner.iter)

    def after_val(self, runner: Runner) -> None:
        self._begin('loading data or saving', runner.iter)

    def after_run(self, runner: Runner) -> None:
        self._ended.set()

    def _begin(self, phase: str, iteration: int) -> None:
        self._phase, self._iter, self._since = phase, iteration, time.monotonic()

    def _watch(self, main_thread: int) -> None:
        limit = 60 * self.minutes
        reported = -1.0
        while not self._ended.wait(min(limit / 4, 10)):
            since = self._since
            if since == reported or time.monotonic() - since < limit:
                continue
            reported = since
            stack = traceback.format_stack(sys._current_frames()[main_thread])[-8:]
            print(f'\nNo progress for {self.minutes:g} minutes{rank_label()}: iteration {self._iter + 1}, '
                  f'{self._phase}. The main thread is here:\n{"".join(stack)}', file=sys.stderr, flush=True)
            if get_world_size() > 1:
                # After printing, because the main thread may keep the store to itself.
                self._tell_all(limit)

    def _tell_all(self, limit: float) -> None:
        store = default_store()
        store.set(f'mmkd/hangs/{get_rank()}', f'iteration {self._iter + 1}, {self._phase}')
        if get_rank() != 0:
            return
        time.sleep(min(limit / 2, 30))  # the others come to the same conclusion a little later
        places = []
        for rank in range(get_world_size()):
            key = f'mmkd/hangs/{rank}'
            place = store.get(key).decode() if store.check([key]) else 'no answer'
            places.append(f'rank {rank}: {place}')
        print(f'\nNo progress for {self.minutes:g} minutes: {"; ".join(places)}.', file=sys.stderr,
              flush=True)
