"""Resuming a run exactly."""
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...checkpoints import SAFE_PREFIX
from ...errors import MMKDError, escaped
from ...random_state import get_random_state, set_random_state
from ...registry import HOOKS
from ..runner_access import unwrapped

_KEY = 'mmkd_random_states'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Saves the random state of every rank in checkpoints, and restores it.

    The state is saved at the end of an epoch and restored at the start of the next, in an uninterrupted run
    as well as after resuming, so that a validation between them has no effect. The workers of the data loader
    follow through :func:`~mmkd.engine.workers.seed_worker`. The seed of the sampler is restored too, which
    matters if the config of the run sets no seed.

    Resuming is exact in epoch-based loops, from a checkpoint that was written at the end of an epoch.
    Iteration-based loops also save and restore the state, but their data loader starts again from its
    beginning, so the resumed run sees different, but equally random, batches.
    """

    # After all hooks that may draw random numbers, before the checkpoint is written.
    priority = 'BELOW_NORMAL'

    def __init__(self) -> None:
        self._states: list[dict] | None = None

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if loader.num_workers and loader.persistent_workers:
            print_log(
                'persistent_workers=True: after resuming, data augmentation will draw different random '
                'numbers than in an uninterrupted run.', 'current', 30)

    def before_train_epoch(self, runner: Runner) -> None:
        if self._states is None:
            return
        if len(self._states) != get_world_size():
            print_log(
                f'The run was saved by {len(self._states)} processes and is resumed by {get_world_size()}: '
                'random numbers will differ.', 'current', 30)
        else:
            set_random_state(self._states[get_rank()])
        self._states = None

    def after_train_epoch(self, runner: Runner) -> None:
        self._states = all_gather_object(get_random_state())

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        if self._is_saved_after_this_iter(runner):
            self._states = all_gather_object(get_random_state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._states is not None:
            checkpoint[_KEY] = self._states

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        if 'message_hub' not in checkpoint or 'epoch' not in (checkpoint.get('meta') or {}):
            raise MMKDError(f'{runner._load_from.removeprefix(SAFE_PREFIX)!r} holds weights only, so no '
                            'training can be resumed from it; use load_from to start from these weights.')
        expected = {name: tuple(value.shape) for name, value in unwrapped(runner).state_dict().items()}
        saved = {name.removeprefix('module.'): tuple(value.shape)
                 for name, value in checkpoint['state_dict'].items()}
        names = expected.keys() | saved.keys()
        if different := sorted(name for name in names if expected.get(name) != saved.get(name)):
            raise MMKDError(
                f'{runner._load_from.removeprefix(SAFE_PREFIX)!r} belongs to another model or method (it '
                f'differs in {", ".join(map(escaped, different[:3]))}), so no training can be resumed from '
                'it; use load_from to start from its weights.')
        self._states = checkpoint.get(_KEY)
        if self._states is None:
            print_log('The checkpoint holds no random states: resuming is not exact.', 'current', 30)
        seed = checkpoint['meta'].get('seed')
        loader = runner.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            if seed is not None and sampler is not None and hasattr(sampler, 'seed'):
                sampler.seed = seed

    def _is_saved_after_this_iter(self, runner: Runner) -> bool:
        hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        return any(self.every_n_train_iters(runner, hook.interval, hook.save_begin)
                   or (hook.save_last and self.is_last_train_iter(runner)) for hook in hooks)
