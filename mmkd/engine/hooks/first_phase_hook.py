"""The first phase of training of some methods."""
from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner

from ...errors import MMKDError
from ...models.methods import Method, PhasedMethod
from ...registry import HOOKS
from ..runner_access import forget_scalars, rewrap, unwrapped


@HOOKS.register_module()
class FirstPhaseHook(Hook):
    """Begins and ends the first phase of training of methods that have one (AB, FSP, FT).

    In the first phase only the losses of these methods count. If none of them trains the student in it, the
    optimizer leaves the student unchanged. What only the first phase trains is frozen afterward.
    """

    priority = 'HIGH'

    def __init__(self) -> None:
        self._ended: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        self._ended = set()
        methods = dict(unwrapped(runner).mmkd.methods.items())
        phased = phased_methods(methods)
        if phased and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise MMKDError(f'{", ".join(phased)}: a first phase is counted in epochs, which an '
                            'IterBasedTrainLoop does not have; train by epochs.')
        check_first_phases(methods, runner.max_epochs)

    def before_train_epoch(self, runner: Runner) -> None:
        phased = {name: method for name, method in phased_methods(unwrapped(runner).mmkd.methods).items()
                  if name not in self._ended}
        if not phased:
            return
        for method in phased.values():
            method.in_first_phase = runner.epoch < method.first_phase_epochs
        running = [name for name, method in phased.items() if method.in_first_phase]
        trains_student = any(phased[name].trains_student_first for name in running)
        runner.optim_wrapper.student_is_frozen = bool(running) and not trains_student
        if running and runner.epoch == 0:
            print_log(f'First phase of training: {", ".join(running)}.', 'current')
        if ended := phased.keys() - running:
            self._end(runner, {name: phased[name] for name in ended})

    def _end(self, runner: Runner, methods: Mapping[str, PhasedMethod]) -> None:
        for name, method in methods.items():
            method.end_first_phase()
            forget_scalars(runner, name)
        runner.message_hub.log_scalars.pop('train/loss_waiting', None)
        self._ended |= methods.keys()
        print_log(f'The first phase of training has ended for {", ".join(methods)}.', 'current')
        rewrap(runner)


def phased_methods(methods: Mapping[str, Method]) -> dict[str, PhasedMethod]:
    """Return the methods that have a first phase of training, by name."""
    return {name: method for name, method in methods.items()
            if isinstance(method, PhasedMethod) and method.first_phase_epochs}


def check_first_phases(methods: Mapping[str, Method], epochs: int) -> None:
    """Check that every first phase leaves epochs for training on the task.

    Args:
        methods: The methods by name.
        epochs: Length of the whole training in epochs.

    Raises:
        MMKDError: If a first phase is at least as long as the whole training.
    """
    for name, method in phased_methods(methods).items():
        if method.first_phase_epochs >= epochs:
            raise MMKDError(f'The first phase of {name} takes {method.first_phase_epochs} epochs, and the '
                            f'whole training has {epochs}; set model.methods.{name}.first_phase_epochs.')
