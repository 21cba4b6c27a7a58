"""Training loops that resume at any iteration."""
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop as _EpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as _IterBasedTrainLoop
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ..datasets.seeded_batches import caching_transforms, seed_batches
from ..errors import MMKDError, one_line
from ..random_state import preserved_random_state
from ..registry import LOOPS
from .training_state import restore_training_state


class ResumableLoop:
    """Mix-in in front of a training loop of MMEngine: starts a pass over the data at any of its batches.

    The random augmentation of a batch depends on its number only (:mod:`mmkd.datasets.seeded_batches`), and
    validation does not change the random state.
    """

    dataloader: DataLoader
    runner: Runner

    pass_number: int = 0
    """Number of the current pass over the data; the epoch, in a loop that counts epochs."""

    next_batch: int = 0
    """Number of the next batch in the pass."""

    is_validating: bool = False
    """Whether the validation that follows the last iteration has begun."""

    _resumed_state: dict | None = None
    _was_validated: bool = True

    def resume_at(self, pass_number: int, next_batch: int, was_validated: bool, state: dict | None) -> None:
        """Set where the loop begins.

        Args:
            pass_number: Number of the pass over the data.
            next_batch: Number of the next batch in the pass.
            was_validated: Whether the validation that may be due at this point was done.
            state: What :func:`~mmkd.engine.training_state.get_training_states` returned for this rank.
        """
        self.pass_number, self.next_batch = pass_number, next_batch
        self._was_validated, self._resumed_state = was_validated, state

    def _start_pass(self) -> Iterator[tuple[int, Any]]:
        """Return the remaining batches of the pass, with their numbers."""
        sampler = seed_batches(self.dataloader)
        skipped = 0 if sampler is None else self.next_batch
        caches = list(caching_transforms(self.dataloader.dataset))
        for transform in caches:  # in workers they are empty, because these are started for every pass
            transform.results_cache.clear()
        if sampler is not None:
            sampler.start_pass(self.runner.seed, self.pass_number, 0 if caches else skipped)
        with preserved_random_state():
            batches = iter(self.dataloader)
        # The number that a new iterator draws, and that persistent workers would not draw in later passes.
        torch.empty((), dtype=torch.int64).random_()
        if caches and skipped:
            print_log(f'Reading {skipped} batches again, because '
                      f'{", ".join(sorted({type(transform).__name__ for transform in caches}))} mixes images '
                      'with earlier images.', 'current')
            for _ in range(skipped):
                next(batches)
        self._restore()  # after the number above has been drawn, as in an uninterrupted run
        return enumerate(batches, start=skipped)

    def _restore(self) -> None:
        if self._resumed_state is not None:
            try:
                restore_training_state(self.runner, self._resumed_state)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise MMKDError('The random states, gradients or buffers in the checkpoint do not fit this '
                                f'training ({one_line(error)}).') from None
            self._resumed_state = None

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()  # type: ignore[attr-defined]
        if self.runner.val_loop is not None and self._validation_is_due():
            self.is_validating = True
            with preserved_random_state():
                self.runner.val_loop.run()
            self.is_validating = False

    def _validate_if_interrupted(self) -> None:
        """Do a validation that was due when a checkpoint was written, and whose results it lacks."""
        if not self._was_validated:
            self._was_validated = True
            self._validate_if_due()

    def _validation_is_due(self) -> bool:
        raise NotImplementedError


@LOOPS.register_module()
class EpochBasedTrainLoop(ResumableLoop, _EpochBasedTrainLoop):
    """MMEngine's loop that counts epochs, which also resumes in the middle of an epoch.

    A validation that was interrupted is done when the run is resumed.

    Args:
        *args: See MMEngine's ``EpochBasedTrainLoop``.
        **kwargs: See MMEngine's ``EpochBasedTrainLoop``.
    """

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        if self.next_batch == 0:  # between two epochs
            self._restore()
            self._validate_if_interrupted()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self.pass_number = self._epoch
        for number, batch in self._start_pass():
            self.next_batch = number + 1
            self.run_iter(number, batch)
        self.next_batch = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _validation_is_due(self) -> bool:
        return self._epoch >= self.val_begin and (
            self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)


@LOOPS.register_module()
class IterBasedTrainLoop(ResumableLoop, _IterBasedTrainLoop):
    """MMEngine's loop that counts iterations, which resumes without loading the batches before.

    A validation that was interrupted is done when the run is resumed.

    Args:
        *args: See MMEngine's ``IterBasedTrainLoop``.
        **kwargs: See MMEngine's ``IterBasedTrainLoop``.
    """

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._validate_if_interrupted()
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _batches(self) -> Iterator[Any]:
        while True:
            self._set_epoch()
            for number, batch in self._start_pass():
                self.next_batch = number + 1
                yield batch
            if self.next_batch == 0:
                raise MMKDError('The training data loader is empty; check the dataset and the batch size.')
            self.pass_number, self.next_batch = self.pass_number + 1, 0

    def _set_epoch(self) -> None:
        """Tell the sampler the number of the pass, as MMEngine does."""
        samplers: list[Any] = [
            self.dataloader.sampler, getattr(self.dataloader.batch_sampler, 'sampler', None)]
        for sampler in samplers:
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self.pass_number)
                return

    def _validation_is_due(self) -> bool:
        return self._iter >= self.val_begin and (
            self._iter % self.val_interval == 0 or self._iter == self._max_iters)
