"""Resuming a run exactly."""
from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner

from ...checkpoints import SAFE_PREFIX
from ...errors import MMKDError, escaped
from ...registry import HOOKS
from ..loops import ResumableLoop
from ..run_fingerprint import check_fingerprint, fingerprint_of_run
from ..runner_access import unwrapped
from ..training_state import get_training_states

_KEY = 'mmkd_resume'
_FINGERPRINT = 'mmkd_fingerprint'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Saves in checkpoints what resuming a run exactly needs, and passes it on to the training loop.

    These are the position in the training data, and for every rank the state that
    :func:`~mmkd.engine.training_state.get_training_states` returns. They are collected before MMEngine's
    checkpoint hooks write: at the end of an epoch, after an iteration at which a hook with ``by_epoch=False``
    is due, and before validation, which may find a new best model. Whoever writes a checkpoint after another
    iteration calls :meth:`capture` first.

    Checkpoints also hold what the run was trained with. Resuming it with another teacher, method, network or
    optimizer is an error; other settings that differ are logged.
    """

    # After all hooks that may draw random numbers, before the checkpoint is written.
    priority = 'BELOW_NORMAL'

    def __init__(self) -> None:
        self._captured: dict | None = None
        self._fingerprint: dict = {}

    def capture(self, runner: Runner) -> None:
        """Collect what the next checkpoint needs; all ranks call this together, after the same iteration.

        Args:
            runner: The runner of the training.
        """
        loop = runner.train_loop
        self._captured = dict(
            pass_number=getattr(loop, 'pass_number', 0),
            next_batch=getattr(loop, 'next_batch', 0),
            was_validated=getattr(loop, 'is_validating', False),
            samples_per_step=_samples_per_step(runner),
            ranks=get_training_states(runner))

    def before_run(self, runner: Runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):
            self._fingerprint = fingerprint_of_run(runner)

    def before_train(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, ResumableLoop):
            print_log(
                f'The training loop is {type(runner.train_loop).__name__}: resuming is not exact, because '
                "only mmkd's EpochBasedTrainLoop and IterBasedTrainLoop can resume at any iteration.",
                'current', 30)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                # MMEngine writes the last checkpoint again after a new best model, but not if it was resumed.
                hook.last_ckpt = runner.message_hub.get_info('last_ckpt')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        if self._is_saved_after_this_iter(runner):
            self.capture(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self.capture(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        if getattr(runner._train_loop, 'is_validating', False):
            self.capture(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._captured is not None:
            checkpoint[_KEY] = self._captured
        checkpoint[_FINGERPRINT] = self._fingerprint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume or not isinstance(runner._train_loop, BaseLoop):
            return
        source = repr(runner._load_from.removeprefix(SAFE_PREFIX))
        saved = checkpoint.get(_FINGERPRINT)
        warning = check_fingerprint(saved, self._fingerprint, source) if isinstance(saved, Mapping) else None
        _check_contents(runner, checkpoint, source)
        if warning:
            print_log(warning, 'current', 30)
        seed = checkpoint['meta'].get('seed')
        loader = runner.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            if seed is not None and sampler is not None and hasattr(sampler, 'seed'):
                sampler.seed = seed
        if isinstance(runner.train_loop, ResumableLoop):
            _set_position(runner, checkpoint, source)

    def _is_saved_after_this_iter(self, runner: Runner) -> bool:
        hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        return any(self.every_n_train_iters(runner, hook.interval, hook.save_begin)
                   or (hook.save_last and self.is_last_train_iter(runner)) for hook in hooks)


def _check_contents(runner: Runner, checkpoint: dict, source: str) -> None:
    if 'message_hub' not in checkpoint or 'epoch' not in (checkpoint.get('meta') or {}):
        raise MMKDError(f'{source} holds weights only, so no training can be resumed from it; use load_from '
                        'to start from these weights.')
    expected = {name: tuple(value.shape) for name, value in unwrapped(runner).state_dict().items()}
    saved = {name.removeprefix('module.'): tuple(value.shape)
             for name, value in checkpoint['state_dict'].items()}
    names = expected.keys() | saved.keys()
    if different := sorted(name for name in names if expected.get(name) != saved.get(name)):
        listed = ', '.join(escaped(name) for name in different[:3])
        raise MMKDError(f'{source} belongs to another model or method (it differs in {listed}), so no '
                        'training can be resumed from it; use load_from to start from its weights.')
    if not checkpoint.get('optimizer'):
        raise MMKDError(f'{source} holds no state of the optimizer, so no training can be resumed from it; '
                        'use load_from to start from its weights.')
    sizes, saved_sizes = (
        [len(group['params']) for group in state.get('param_groups', ())]
        for state in (runner.optim_wrapper.state_dict(), checkpoint['optimizer']))
    if sizes != saved_sizes:
        raise MMKDError(f'{source} has the optimizer state of {sum(saved_sizes)} parameters in '
                        f'{len(saved_sizes)} groups, but the optimizer has {sum(sizes)} in {len(sizes)}; '
                        'restore optim_wrapper, or use load_from to start from the weights.')


def _set_position(runner: Runner, checkpoint: dict, source: str) -> None:
    """Tell the training loop where it begins."""
    loop, meta, saved = runner.train_loop, checkpoint['meta'], checkpoint.get(_KEY)
    if saved is None:
        print_log(f'{source} holds no random states: resuming is not exact.', 'current', 30)
        before = meta['epoch'] * len(loop.dataloader)
        loop.resume_at(0, max(0, meta['iter'] - before), False, None)
        return
    pass_number, next_batch, before, states = _position(saved, source)
    now = _samples_per_step(runner)
    if now != before and now and before:
        next_batch = next_batch * before // now
    if len(states) != get_world_size():
        print_log(f'{source} was saved by {len(states)} processes and is resumed by {get_world_size()}: '
                  'random numbers and batches will differ.', 'current', 30)
    state = states[get_rank()] if len(states) == get_world_size() else None
    loop.resume_at(pass_number, next_batch, bool(saved['was_validated']), state)


def _position(saved: Any, source: str) -> tuple[int, int, int, list]:
    """Return the pass, the next batch, the samples per step and the states of the ranks in a checkpoint."""
    try:
        numbers = [int(saved[name]) for name in ('pass_number', 'next_batch', 'samples_per_step')]
        states = list(saved['ranks'])
    except (KeyError, TypeError, ValueError):
        states = []
    if not states or min(numbers) < 0 or 'was_validated' not in saved:
        raise MMKDError(f'{source} does not say where in the training data it was written; it is damaged.')
    return numbers[0], numbers[1], numbers[2], states


def _samples_per_step(runner: Runner) -> int:
    """Return the number of samples of all ranks in an iteration, or 0 if it is unknown."""
    sampler = runner.train_dataloader.batch_sampler
    size = getattr(sampler, 'batch_size', None)
    return size * get_world_size() if isinstance(size, int) else 0
