"""Everything that distillation adds to a student, in one module."""
from collections.abc import Iterable, Mapping, Sequence

import torch
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from ...errors import MMKDError, SettingError, nearest_names
from ...random_state import preserved_random_state
from ...registry import build_checked
from ..methods import Method
from ..methods.base import COMMON_SETTINGS
from ..methods.family_defaults import kind_of, with_family_defaults
from ..methods.mixins import in_first_phase
from ..methods.table import METHODS
from ..spots import Recorder, resolve_spot
from ..step import Step
from ..teachers import Teacher, build_teachers
from .balancing import WITHOUT_GRADIENT, GradientBalance
from .weighting import weighted_losses


class Distillation(BaseModule):
    """The methods and the teachers they learn from; the student's child module ``mmkd``.

    Args:
        student: The student network, built but not yet initialized.
        student_cfg: The student's model config.
        teacher: The teacher's config, a list of them, or ``None`` if no method needs a teacher.
        methods: The configs of the methods by the user's names.
        balance: The :attr:`~mmkd.models.methods.Method.balance` of methods whose configs have none.

    Raises:
        MMKDError: If the student, the teachers and a method cannot work together.
    """

    def __init__(self, student: nn.Module, student_cfg: dict, teacher: dict | Sequence[dict] | None,
                 methods: Mapping[str, dict], balance: str | None = None) -> None:
        super().__init__()
        self.methods = ModuleDict({
            name: _build_method(name, cfg, [other for other in methods if other != name], student, balance)
            for name, cfg in methods.items()})
        replacing = [name for name, method in self.methods.items() if method.task_losses]
        if len(replacing) > 1:
            raise MMKDError(f'The methods {" and ".join(replacing)} would each replace the task loss of the '
                            'student; only one of them can (DeiT, or standardize_task).')
        self.teachers: list[Teacher] = build_teachers(teacher)
        for built in self.teachers:
            built.build(student)
        for name, method in self.methods.items():
            try:
                method.build(student, self.teachers, student_cfg)
            except SettingError as error:  # of a part that is built here, such as a connector or a proxy
                raise error.inside(f'model.methods.{name}') from None
        for built in self.teachers:
            built.add_spots(self.teacher_spots)
        self._points = {
            spot: resolve_spot(student, spot, 'student') for spot in self.student_spots}
        self.gradient_balance = GradientBalance(student, self.methods)

    def _apply(self, fn, *args, **kwargs):
        # The teachers are outside of the module tree, but follow the student to its device.
        for teacher in self.teachers:
            teacher.apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def init_weights(self) -> None:
        # With the same seed, training has the same batches and samples with and without distillation.
        with preserved_random_state():
            super().init_weights()

    @property
    def teacher(self) -> Teacher:
        """The first teacher."""
        return self.teachers[0]

    @property
    def active_methods(self) -> dict[str, Method]:
        """The methods that no schedule has ended; in a first phase of training, only those that have one."""
        active = {name: method for name, method in self.methods.items() if method.active}
        return {name: method for name, method in active.items() if in_first_phase(method)} or active

    @property
    def teacher_spots(self) -> list[str]:
        """All spots that the active methods read from the teachers."""
        return _union(method.teacher_spots for method in self.active_methods.values())

    @property
    def student_spots(self) -> list[str]:
        """All spots that are recorded in the student."""
        spots = _union(method.student_spots for method in self.active_methods.values())
        if any(teacher.needs_rois(self.teacher_spots) for teacher in self.teachers):
            spots = _union([spots, ['rois']])
        return spots

    def recorder(self, student: nn.Module) -> Recorder:
        """Return a recorder of all spots that the methods read from the student."""
        measured = self.gradient_balance.points(self.active_methods)
        spots = {spot: self._points[spot] for spot in self.student_spots}
        return Recorder(student, {**measured, **spots}, overwritable=measured)

    def losses(self, student: nn.Module, recorder: Recorder, inputs: Tensor, data_samples: Sequence,
               student_losses: dict) -> dict:
        """Run the teachers on a batch, and return the losses of all methods together with the student's.

        Args:
            student: The student network.
            recorder: The recorder of the student's training step.
            inputs: The preprocessed batch of the student, ``(N, 3, H, W)``.
            data_samples: The samples of the batch.
            student_losses: The student's losses.

        Returns:
            dict: The student's losses, and the losses of the methods and other values to log as
            ``<method>.<name>``; see :func:`~mmkd.models.distillers.weighting.weighted_losses`.
        """
        student_outputs = {spot: recorder[spot] for spot in self.student_spots}
        for spot, calls in student_outputs.items():
            if not calls and spot != 'box_targets':  # without objects, no box has a target
                raise MMKDError(f"The spot {spot!r} was not reached in the student's training step.")
            if spot not in WITHOUT_GRADIENT and torch.is_grad_enabled():
                _check_gradient(spot, calls)
        spots = self.teacher_spots
        rois = student_outputs.get('rois')
        teacher_outputs = [teacher(inputs, data_samples, rois, spots) for teacher in self.teachers]
        step = Step(student, inputs, data_samples, student_outputs, teacher_outputs)
        methods = self.active_methods
        method_losses = {name: method(step) for name, method in methods.items()}
        losses = weighted_losses(
            student_losses,
            method_losses,
            student_task={name: 0.0 if in_first_phase(method) else method.student_task
                          for name, method in methods.items()},
            scale={name: method.scale * method.warmup_factor for name, method in methods.items()},
            task_losses={name: method.task_losses for name, method in methods.items()},
            proxy_losses={name: method.proxy_losses for name, method in methods.items()})
        self.gradient_balance.measure(recorder, losses, method_losses, methods)
        return {**self.gradient_balance.balanced(losses, methods), **self._waiting()}

    def _waiting(self) -> dict[str, Tensor]:
        """Return a zero that depends on all parameters that wait for the first phase to end, for DDP."""
        active = self.active_methods
        zeros = [parameter.sum() * 0 for name, method in self.methods.items()
                 if method.active and name not in active
                 for parameter in method.parameters() if parameter.requires_grad]
        return dict(loss_waiting=sum(zeros)) if zeros else {}


def _build_method(name: str, cfg: dict, others: Iterable[str], student: nn.Module,
                  balance: str | None) -> Method:
    if '.' in name or 'loss' in name or hasattr(ModuleDict, name):  # MMEngine adds up all that is a 'loss'
        raise MMKDError(f'A method cannot be called {name!r}; choose another key in `methods`.')
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise MMKDError(f'The method {name!r} needs a dict with a `type`, such as '
                        f"dict(type='mmkd.SHAKE'){nearest_names(name, others)}.")
    known = [*METHODS, 'ProxyDistill', 'LogitDistill', 'FeatureDistill']
    if balance is not None:
        cfg = {'balance': balance, **cfg}
    cfg = with_family_defaults(cfg, kind_of(student))
    own = {key: value for key, value in cfg.items() if key not in COMMON_SETTINGS}
    method = build_checked(own, Method, 'method', f'model.methods.{name}', known)
    try:
        method.set_common({key: value for key, value in cfg.items() if key in COMMON_SETTINGS})
    except SettingError as error:
        raise error.inside(f'model.methods.{name}') from None
    return method


def _check_gradient(spot: str, calls: list) -> None:
    # The first tensor of a call decides, because other outputs of a head may come without a gradient.
    for output in calls:
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, Tensor) and not output.requires_grad:
            raise MMKDError(
                f"The student's output at the spot {spot!r} carries no gradient, so distilling it would have "
                'no effect: the layers before it are frozen, or it is inside a part under reentrant '
                'activation checkpointing.')


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(spot for group in groups for spot in group))
