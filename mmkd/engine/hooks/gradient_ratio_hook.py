"""The gradients of methods beside the task's: when they are measured, and what the log says about them."""
import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...models.methods.describing import describe
from ...models.methods.family_defaults import kind_of
from ...models.methods.table import CAUTIONS
from ...registry import HOOKS
from ...settings import PositiveFloat, PositiveInt
from ..runner_access import unwrapped

GRADIENT_INTERVAL = 50
"""Iterations between two measurements for the log."""

BALANCE_INTERVAL = 20
"""Iterations between two measurements while a method is balanced."""


@HOOKS.register_module()
class GradientRatioHook(Hook):
    """Logs the methods in words, and how large their gradients are relative to the task's.

    Before training, the log describes every method in one line, and warns of those with which students were
    worse than without a teacher in docs/benchmarks/. ``<method>.gradient_ratio`` is the ratio that
    :class:`~mmkd.models.distillers.balancing.GradientBalance` measured last, with the present factors of the
    method's losses. A method that outweighs the task is warned of once, with the ratio.

    Args:
        interval: Iterations between two measurements.
        balance_interval: The same while a method with ``balance='gradient'`` is in use. During the first such
            interval, ratios are also measured in iterations 1, 2, 4, 8, and so on.
        warn_above: The averaged ratio from which a method is warned of; the default was measured
            (docs/balance.md).
    """

    priority = 'HIGH'

    def __init__(self, interval: PositiveInt = GRADIENT_INTERVAL,
                 balance_interval: PositiveInt = BALANCE_INTERVAL,
                 warn_above: PositiveFloat = 30.0) -> None:
        self.interval = interval
        self.balance_interval = balance_interval
        self.warn_above = warn_above
        self._warned: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        self._warned = set()
        mmkd = unwrapped(runner).mmkd
        for name, method in mmkd.methods.items():
            print_log(f'{name}: {describe(method)}', 'current')
            caution = CAUTIONS.get((type(method).__name__, kind_of(unwrapped(runner))))
            if caution and not method.is_balanced:
                print_log(
                    f'In docs/benchmarks/, students with {type(method).__name__} were worse than without a '
                    f'teacher: {caution}. Compare with the student alone.', 'current', logging.WARNING)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        mmkd = unwrapped(runner).mmkd
        balanced = any(method.is_balanced for method in mmkd.active_methods.values())
        interval = self.balance_interval if balanced else self.interval
        # Ratios change fastest at first: iterations 0, 1, 2, 4, 8, …
        is_early = balanced and runner.iter < interval and runner.iter & (runner.iter - 1) == 0
        mmkd.gradient_balance.due = is_early or runner.iter % interval == 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        mmkd = unwrapped(runner).mmkd
        if not mmkd.gradient_balance.due or mmkd.gradient_balance.unavailable:
            return
        for name, method in mmkd.active_methods.items():
            runner.message_hub.update_scalar(
                f'train/{name}.gradient_ratio', mmkd.gradient_balance.ratio(name, method))
            if method.is_balanced:
                factor = mmkd.gradient_balance.factor(name, method).item()
                runner.message_hub.update_scalar(f'train/{name}.balance_factor', factor)
            mean = mmkd.gradient_balance.mean_ratio(name, method)
            if mean > self.warn_above and name not in self._warned:
                self._warned.add(name)
                print_log(
                    f"The gradient of {name} at the student's features is {mean:.3g} times as large as the "
                    f"task's. If the student learns its task worse than without {name}, set a lower weight "
                    f"(model.methods.{name}.weight), or model.methods.{name}.balance='gradient'.",
                    'current', logging.WARNING)
