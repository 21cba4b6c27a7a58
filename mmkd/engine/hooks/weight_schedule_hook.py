"""Schedules of the weight of distillation."""
import math
from collections.abc import Sequence
from typing import Literal

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...errors import MMKDError
from ...registry import HOOKS
from ...settings import NonNegativeFloat, NonNegativeInt, PositiveFloat
from ..runner_access import forget_scalars, rewrap, unwrapped
from .warmup_hook import linear_warmup


@HOOKS.register_module()
class WeightScheduleHook(Hook):
    """Warms up, decays and ends the losses of methods.

    The factor rises linearly from 0 to 1 during the first ``warmup`` iterations, falls to 0 from
    ``decay_from`` until ``stop`` (or the end of training), and is 1 in between. From ``stop`` on, a method is
    no longer computed, and its parameters are frozen. What a proxy or a policy learns by
    (:attr:`~mmkd.models.methods.Method.proxy_losses`) has no factor. Once all methods have ended, the teacher
    no longer runs, so a step costs as much as without distillation.

    Args:
        methods: The name or names of methods, as in the config; by default all methods.
        warmup: Length of the warm-up in iterations.
        decay_from: Start of the decay in epochs, or in iterations with ``by_epoch=False``.
        stop: End of the methods, in the same unit.
        decay: Shape of the decay: ``'linear'`` or ``'cosine'``.
        by_epoch: Whether the unit of ``decay_from`` and ``stop`` is an epoch. An epoch is the length of the
            training data loader, also in loops that count iterations.
    """

    priority = 'HIGH'

    def __init__(self,
                 methods: str | Sequence[str] | None = None,
                 warmup: NonNegativeInt = 0,
                 decay_from: NonNegativeFloat | None = None,
                 stop: PositiveFloat | None = None,
                 decay: Literal['linear', 'cosine'] = 'linear',
                 by_epoch: bool = True) -> None:
        if decay_from is not None and stop is not None and decay_from >= stop:
            raise MMKDError(f'WeightScheduleHook cannot decay from {decay_from} until {stop}.')
        self.methods = [methods] if isinstance(methods, str) else list(methods or [])
        self.warmup = warmup
        self.decay_from = decay_from
        self.stop = stop
        self.decay = decay
        self.by_epoch = by_epoch

    def before_train(self, runner: Runner) -> None:
        known = list(unwrapped(runner).mmkd.methods)
        self.methods = self.methods or known
        if unknown := set(self.methods) - set(known):
            raise MMKDError(f'WeightScheduleHook: there is no method {sorted(unknown)}; the config has '
                            f'{known}.')
        self._end = self._in_unit(runner.max_iters, runner)
        if self.decay_from is not None and self.decay_from >= self._end:
            unit = 'epochs' if self.by_epoch else 'iterations'
            raise MMKDError(f'WeightScheduleHook cannot decay from {self.decay_from} {unit} on: training '
                            f'ends after {self._end:g}.')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        now = self._in_unit(runner.iter, runner)
        model = unwrapped(runner)
        for name in self.methods:
            model.mmkd.methods[name].scale = self.factor(runner.iter, now)
        running = [name for name in self.methods if model.mmkd.methods[name].active]
        if self.stop is not None and now >= self.stop and running:
            for name in running:
                model.mmkd.methods[name].active = False
                model.mmkd.methods[name].requires_grad_(False)
                forget_scalars(runner, name)
            print_log(f'Distillation has ended for {", ".join(running)}.', 'current')
            rewrap(runner)

    def _in_unit(self, iterations: int, runner: Runner) -> float:
        # Not in the loop's epochs, because a loop that counts iterations has only one epoch.
        return iterations / len(runner.train_dataloader) if self.by_epoch else iterations

    def factor(self, iteration: int, now: float) -> float:
        """Return the factor of the losses.

        Args:
            iteration: The number of iterations done.
            now: The same number in the unit of ``decay_from`` and ``stop``.
        """
        factor = linear_warmup(iteration, self.warmup)
        if self.decay_from is not None and now > self.decay_from:
            end = self.stop if self.stop is not None else self._end
            share = min(1.0, (now - self.decay_from) / (end - self.decay_from))
            factor *= 1 - share if self.decay == 'linear' else (1 + math.cos(math.pi * share)) / 2
        return factor
