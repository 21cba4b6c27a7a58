"""Resuming as if nothing had happened."""
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log

from ...checkpoints import SAFE_PREFIX
from ...errors import MMKDError
from ...random_state import get_random_state, set_random_state
from ...registry import HOOKS
from ..runner_access import unwrapped

_KEY = 'mmkd_random_states'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Saves the random state of every rank in checkpoints, and restores it.

    The state is taken when an epoch ends and put back when the next one begins, in an undisturbed run as
    well as after resuming, so that a validation in between changes nothing. Workers follow through
    :func:`~mmkd.engine.workers.seed_worker`. The sampler gets back its seed, which matters when a run has
    no seed in its config.

    This holds for loops by epoch that resume from an epoch's checkpoint. Loops by iteration also save and
    restore the state, but their data loader starts anew in the middle, so what follows is another, equally
    random, course.
    """

    # After every hook that may draw numbers itself, before the checkpoint is written.
    priority = 'BELOW_NORMAL'

    def __init__(self) -> None:
        self._states = None

    def before_train(self, runner) -> None:
        loader = runner.train_dataloader
        if loader.num_workers and loader.persistent_workers:
            print_log(
                'persistent_workers=True: after resuming, data augmentation will draw other numbers than '
                'in an undisturbed run.', 'current', 30)

    def before_train_epoch(self, runner) -> None:
        if self._states is None:
            return
        if len(self._states) != get_world_size():
            print_log(
                f'The run was saved by {len(self._states)} processes and goes on with '
                f'{get_world_size()}: random numbers will differ.', 'current', 30)
        else:
            set_random_state(self._states[get_rank()])
        self._states = None

    def after_train_epoch(self, runner) -> None:
        self._states = all_gather_object(get_random_state())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._is_saved_after_this_iter(runner):
            self._states = all_gather_object(get_random_state())

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._states is not None:
            checkpoint[_KEY] = self._states

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        if 'message_hub' not in checkpoint or 'epoch' not in (checkpoint.get('meta') or {}):
            raise MMKDError(f'{runner._load_from.removeprefix(SAFE_PREFIX)!r} holds weights only, so no '
                            'training can be resumed from it; start from it with load_from instead.')
        model = unwrapped(runner)
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        saved = {name.removeprefix('module.'): tuple(value.shape)
                 for name, value in checkpoint['state_dict'].items()}
        if other := sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name)):
            raise MMKDError(
                f'{runner._load_from.removeprefix(SAFE_PREFIX)!r} is of another model or method (it differs '
                f'in {", ".join(other[:3])}), so no training can be resumed from it; start from it with '
                'load_from instead.')
        self._states = checkpoint.get(_KEY)
        if self._states is None:
            print_log('The checkpoint holds no random states: resuming is not exact.', 'current', 30)
        seed = checkpoint.get('meta', {}).get('seed')
        loader = runner.train_dataloader
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            if seed is not None and hasattr(sampler, 'seed'):
                sampler.seed = seed

    def _is_saved_after_this_iter(self, runner) -> bool:
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and not hook.by_epoch:
                if self.every_n_train_iters(runner, hook.interval, hook.save_begin) or (
                        hook.save_last and self.is_last_train_iter(runner)):
                    return True
        return False
