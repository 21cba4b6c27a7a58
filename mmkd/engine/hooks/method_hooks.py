"""Hooks for what only some methods need: a first phase of training, labels of the training set, reports."""
import json
import os.path as osp
from collections.abc import Mapping, Sequence

from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

from ...checkpoints import write_atomic
from ...errors import MMKDError
from ...models.methods import EpochReports, Method, PhasedMethod, TrainLabelsMethod
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
        methods = unwrapped(runner).mmkd.methods
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
        if ended := [name for name in phased if name not in running]:
            for name in ended:
                phased[name].end_first_phase()
                forget_scalars(runner, name)
            self._ended.update(ended)
            runner.message_hub.log_scalars.pop('train/loss_waiting', None)
            print_log(f'The first phase of training has ended for {", ".join(ended)}.', 'current')
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


@HOOKS.register_module()
class TrainLabelsHook(Hook):
    """Passes the classes of the training set to the methods that need them (CRD)."""

    priority = 'HIGH'

    def before_run(self, runner: Runner) -> None:
        distillation = getattr(unwrapped(runner), 'mmkd', None)
        if distillation is None or not isinstance(runner._train_loop, BaseLoop):
            return  # a student alone, or a test
        methods = [method for method in distillation.methods.values()
                   if isinstance(method, TrainLabelsMethod) and method.needs_train_labels]
        if methods:
            if get_world_size() > 1 and not getattr(runner.train_dataloader.sampler, 'round_up', True):
                raise MMKDError('A method shares its memory among all processes, which needs batches of the '
                                'same size on all of them: set train_dataloader.sampler.round_up=True.')
            # Before weights are loaded, because they may include buffers whose size depends on the labels.
            labels = _train_labels(runner.train_dataloader.dataset)
            for method in methods:
                method.set_train_labels(labels)


def _train_labels(dataset: BaseDataset) -> Sequence[int]:
    if not hasattr(dataset, 'get_gt_labels'):
        raise MMKDError('A method needs the class of every training image, which '
                        f'{type(dataset).__name__} cannot list; use a dataset of MMPretrain.')
    return dataset.get_gt_labels().tolist()


@HOOKS.register_module()
class EpochReportHook(Hook):
    """Appends what methods report on an epoch (SAKD) to ``<method>_epochs.jsonl`` in the work directory.

    A part of a method that has learned enough by its reports is frozen before the next epoch.
    """

    priority = 'HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        methods = unwrapped(runner).mmkd.methods
        frozen = [name for name, method in methods.items()
                  if isinstance(method, EpochReports) and method.freeze_settled()]
        for name in frozen:
            forget_scalars(runner, name)
        if frozen:
            rewrap(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        for name, method in unwrapped(runner).mmkd.methods.items():
            report = method.epoch_report() if isinstance(method, EpochReports) else None
            if report and is_main_process():
                path = osp.join(runner.work_dir, f'{name}_epochs.jsonl')
                lines = _lines_before(path, runner.epoch + 1)
                lines.append(json.dumps(dict(epoch=runner.epoch + 1, **report)) + '\n')
                write_atomic(''.join(lines).encode(), path)


def _lines_before(path: str, epoch: int) -> list[str]:
    """Return the lines on earlier epochs; a resumed run may repeat an epoch."""
    if not osp.exists(path):
        return []
    with open(path) as file:
        return [line for line in file if json.loads(line)['epoch'] < epoch]
