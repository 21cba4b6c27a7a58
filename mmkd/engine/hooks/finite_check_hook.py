"""Stopping a training that has left the finite numbers."""
import math
from types import SimpleNamespace
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...checkpoints import SAFE_PREFIX, find_invalid, latest_checkpoint
from ...errors import MMKDError
from ...registry import HOOKS
from ...settings import NonNegativeInt
from ..runner_access import unwrapped


@HOOKS.register_module()
class FiniteCheckHook(Hook):
    """Stops training when a loss or a weight becomes NaN or infinite, before a checkpoint is saved.

    The error names the first loss and the iteration, and says if the teacher is the cause. The sum of the
    losses is checked in every iteration, when MMEngine has already transferred it from the GPU for its log.
    Weights and the statistics of batch norms are checked before training and in every checkpoint, so the last
    checkpoint is always finite.

    In mixed precision, the gradient scaler skips the update of an iteration whose gradients are not finite.
    Training then goes on as long as the weights stay finite, up to ``tolerance`` such iterations in a row.

    Args:
        tolerance: In mixed precision, how many losses in a row may be NaN or infinite.
    """

    # After EMAHook has put its weights into a checkpoint, before CheckpointHook saves one.
    priority = 'BELOW_NORMAL'

    def __init__(self, tolerance: NonNegativeInt = 10) -> None:
        self.tolerance = tolerance
        self._in_a_row = 0

    def before_train(self, runner: Runner) -> None:
        self._in_a_row = 0
        if problem := find_invalid(unwrapped(runner).state_dict()):
            source = (runner.cfg.get('load_from') or '').removeprefix(SAFE_PREFIX)
            source = f'from {source!r}' if source else 'that it was initialized with'
            raise MMKDError(f'The model cannot be trained with the weights {source}: {problem}; '
                            'take an earlier checkpoint, or one from another source.')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        if not outputs or 'loss' not in outputs or math.isfinite(outputs['loss']):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        name = _first_invalid(outputs)
        problem = f'the loss {name!r} is {"NaN" if math.isnan(outputs[name]) else "infinite"}'
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if (scaler is not None and scaler.is_enabled() and self._in_a_row <= self.tolerance
                and not find_invalid(unwrapped(runner).state_dict())):
            print_log(f'In iteration {runner.iter + 1}, {problem}; the gradient scaler skips the update.',
                      'current', 30)
            return
        cause = _teacher_problem(runner, name, data_batch) or _advice(runner, name)
        raise _error(runner, runner.iter + 1, problem, cause)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for key in ('state_dict', 'ema_state_dict'):
            if problem := find_invalid(checkpoint.get(key) or {}):
                raise _error(runner, checkpoint['meta']['iter'], problem, _ADVICE)


_ADVICE = 'try a lower learning rate, a longer warm-up, or gradient clipping (optim_wrapper.clip_grad)'


def _error(runner: Runner, iteration: int, problem: str, advice: str) -> MMKDError:
    path = latest_checkpoint(runner.work_dir)
    finite = f'the last finite checkpoint is {path!r}' if path else 'there is no earlier checkpoint'
    return MMKDError(f'Training has ended in iteration {iteration} because {problem}: {advice}; {finite}.')


def _first_invalid(outputs: dict) -> str:
    """Return the name of the first loss that is not finite; ``'loss'`` if only the sum is not."""
    for name, value in outputs.items():
        if 'loss' in name and name != 'loss' and not math.isfinite(value):
            return name
    return 'loss'


def _method(runner: Runner, loss: str) -> str | None:
    """Return the name of the method that a loss belongs to; ``None`` if it is the student's own loss."""
    name = loss.rpartition('.')[0]
    return name if name in getattr(unwrapped(runner), 'mmkd', SimpleNamespace(methods={})).methods else None


def _teacher_problem(runner: Runner, loss: str, data_batch: Any) -> str | None:
    """Return that a teacher is the cause of a method's loss that is not finite; ``None`` if none is."""
    if not _method(runner, loss):
        return None
    model = unwrapped(runner)
    data = model.data_preprocessor(data_batch, False)
    for teacher in model.mmkd.teachers:
        if layer := teacher.find_nan(data['inputs'], data['data_samples']):
            return (f'the teacher {type(teacher.model).__name__} computes NaN on this batch, first in its '
                    f'layer {layer!r}, so check its checkpoint and its precision')
    return None


def _advice(runner: Runner, loss: str) -> str:
    method = _method(runner, loss)
    return f'{_ADVICE}, or a lower weight of the method {method!r}' if method else _ADVICE
