"""What methods have to know of the training around them."""
import json
import os.path as osp
from collections.abc import Mapping, Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, IterBasedTrainLoop

from ...errors import MMKDError
from ...models.methods import Method
from ...registry import HOOKS
from ..runner_access import forget_scalars, rewrap, unwrapped


@HOOKS.register_module()
class MethodInfoHook(Hook):
    """Tells methods the classes of the training set, and when their first stage of training begins and ends.

    In the first stage of a method only the losses of such methods count; where it does not train the student,
    the optimizer leaves the student alone. What only the first stage trains is frozen after it. What a method
    reports of an epoch is added to ``<method>_epochs.jsonl`` in the work directory.
    """

    priority = 'HIGH'

    def before_run(self, runner) -> None:
        distillation = getattr(unwrapped(runner), 'mmkd', None)
        wanting = [] if distillation is None else [
            method for method in distillation.methods.values() if method.needs_train_labels]
        # Before weights are loaded, for they may include what depends on the labels; not in testing.
        if wanting and isinstance(runner._train_loop, BaseLoop):
            labels = _labels(runner.train_dataloader.dataset)
            for method in wanting:
                method.set_train_labels(labels)

    def before_train(self, runner) -> None:
        self._ended = set()
        methods = unwrapped(runner).mmkd.methods.items()
        staged = [name for name, method in methods if method.first_phase_epochs]
        if staged and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise MMKDError(f'{", ".join(staged)}: a first stage is counted in epochs, which an '
                            'IterBasedTrainLoop does not have; train by epochs.')
        check_first_phases(dict(methods), runner.max_epochs)

    def before_train_epoch(self, runner) -> None:
        staged = {name: method for name, method in unwrapped(runner).mmkd.methods.items()
                  if method.first_phase_epochs and name not in self._ended}
        for method in staged.values():
            method.in_first_phase = runner.epoch < method.first_phase_epochs
        running = [name for name, method in staged.items() if method.in_first_phase]
        if staged:
            runner.optim_wrapper.student_is_frozen = bool(running) and not any(
                staged[name].trains_student_first for name in running)
        if running and runner.epoch == 0:
            print_log(f'First stage of training: {", ".join(running)}.', 'current')
        if ended := staged.keys() - running:
            for name in ended:
                staged[name].end_first_phase()
                forget_scalars(runner, name)
            runner.message_hub.log_scalars.pop('train/loss_waiting', None)
            self._ended |= ended
            print_log(f'The first stage of training has ended for {", ".join(ended)}.', 'current')
            rewrap(runner)

    def after_train_epoch(self, runner) -> None:
        for name, method in unwrapped(runner).mmkd.methods.items():
            report = method.epoch_report()
            if report and is_main_process():
                with open(osp.join(runner.work_dir, f'{name}_epochs.jsonl'), 'a') as file:
                    file.write(json.dumps(dict(epoch=runner.epoch + 1, **report)) + '\n')


def check_first_phases(methods: Mapping[str, Method], epochs: int) -> None:
    """Check that every first stage of training leaves epochs to learn the task in.

    Args:
        methods: By name.
        epochs: Length of the whole training.

    Raises:
        MMKDError: If one does not.
    """
    for name, method in methods.items():
        if method.first_phase_epochs >= epochs:
            raise MMKDError(f'The first stage of {name} takes {method.first_phase_epochs} epochs, and the '
                            f'whole training has {epochs}; set model.methods.{name}.first_phase_epochs.')


def _labels(dataset) -> Sequence[int]:
    if not hasattr(dataset, 'get_gt_labels'):
        raise MMKDError(f'A method wants to know the class of every training image; {type(dataset).__name__} '
                        'does not tell. It works with the data sets of MMPretrain.')
    return dataset.get_gt_labels().tolist()
