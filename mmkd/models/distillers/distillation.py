"""All that distillation adds to a student, in one module."""
import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from ...errors import MMKDError, nearest_names, one_line
from ...random_state import preserved_random_state
from ...registry import MODELS
from ..methods import PRESETS, Method
from ..spots import Recorder, resolve_spot
from ..step import Step
from ..teachers import Teacher, build_teachers

_WITHOUT_GRADIENT = ('rois', 'cls_targets')


class Distillation(BaseModule):
    """Methods and the teachers they learn from; the student's child module ``mmkd``.

    Args:
        student: The student network, built but not yet initialized.
        student_cfg: Its config.
        teacher: The teacher's config, a list of them, or ``None`` where no method needs one.
        methods: The methods' configs, by the user's names for them.

    Raises:
        MMKDError: If student, teachers and a method cannot work together.
    """

    def __init__(self, student: nn.Module, student_cfg: dict, teacher: dict | Sequence[dict] | None,
                 methods: Mapping[str, dict]) -> None:
        super().__init__()
        if not isinstance(methods, Mapping):
            raise MMKDError('`methods` must be a dict of methods by name, such as '
                            f"dict(shake=dict(type='mmkd.SHAKE')), not a {type(methods).__name__}.")
        self.methods = ModuleDict({name: _build_method(name, cfg) for name, cfg in methods.items()})
        owners = [name for name, method in self.methods.items() if method.task_losses]
        if len(owners) > 1:
            raise MMKDError(f'The methods {" and ".join(owners)} would each replace the task loss of the '
                            'student; only one of them can (DeiT, or standardize_task).')
        self.teachers = build_teachers(teacher)
        for one in self.teachers:
            one.build(student)
        for method in self.methods.values():
            method.build(student, self.teachers, student_cfg)
        for one in self.teachers:
            one.add_spots(self.teacher_spots)
        self._points = {
            spot: resolve_spot(student, spot, 'student') for spot in self.student_spots}

    def _apply(self, fn, *args, **kwargs):
        # The teachers are outside of the module tree, but live on the student's device.
        for teacher in self.teachers:
            teacher.apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def init_weights(self) -> None:
        # The same seed shall give the same batches and samples with and without distillation.
        with preserved_random_state():
            super().init_weights()

    @property
    def teacher(self) -> Teacher:
        """The first teacher."""
        return self.teachers[0]

    @property
    def active_methods(self) -> dict[str, Method]:
        """The methods that no schedule has ended; in a first stage of training, those that have one."""
        active = {name: method for name, method in self.methods.items() if method.active}
        return {name: method for name, method in active.items() if method.in_first_phase} or active

    @property
    def teacher_spots(self) -> list[str]:
        """All spots that the active methods ask the teachers for."""
        return _union(method.teacher_spots for method in self.active_methods.values())

    @property
    def student_spots(self) -> list[str]:
        """All spots that are recorded in the student."""
        spots = _union(method.student_spots for method in self.active_methods.values())
        if any(teacher.needs_rois(self.teacher_spots) for teacher in self.teachers):
            spots = _union([spots, ['rois']])
        return spots

    def recorder(self, student: nn.Module) -> Recorder:
        """Return a recorder of all the spots that the methods asked for in the student."""
        return Recorder(student, {spot: self._points[spot] for spot in self.student_spots})

    def loss(self, student: nn.Module, recorder: Recorder, inputs: Tensor, data_samples: Sequence,
             own: dict) -> dict:
        """Ask the teachers about a batch and return the losses of all methods with the student's own.

        Args:
            student: The student network.
            recorder: What was seen of it.
            inputs: Its preprocessed batch ``(N, 3, H, W)``.
            data_samples: Its samples.
            own: The student's own losses.

        Returns:
            dict: The student's own losses, and ``<method>.<loss>`` and other values to log, all scalars.
        """
        seen = {spot: recorder[spot] for spot in self.student_spots}
        for spot, values in seen.items():
            if not values:
                raise MMKDError(f"The spot {spot!r} was not reached in the student's training step.")
            if spot not in _WITHOUT_GRADIENT and torch.is_grad_enabled():
                _check_gradient(spot, values)
        spots = self.teacher_spots
        taught = [teacher(inputs, data_samples, seen.get('rois'), spots) for teacher in self.teachers]
        step = Step(student, inputs, data_samples, seen, taught)
        methods = self.active_methods
        tasks = {name: 0.0 if method.in_first_phase else method.student_task
                 for name, method in methods.items()}
        losses = _scaled(own, math.prod(tasks.values()))
        for name, method in methods.items():
            found = method(step)
            task = {key: found.pop(key) for key in method.task_losses if key in found}
            others = math.prod(factor for other, factor in tasks.items() if other != name)
            found = {**_scaled(task, others), **_scaled(found, method.scale)}
            losses.update({f'{name}.{key}': value for key, value in found.items()})
        return {**losses, **self._waiting()}

    def _waiting(self) -> dict[str, Tensor]:
        """Return zeros that depend on all that another method's first stage keeps waiting, for DDP."""
        active = self.active_methods
        zeros = [parameter.sum() * 0 for name, method in self.methods.items()
                 if method.active and name not in active
                 for parameter in method.parameters() if parameter.requires_grad]
        return dict(loss_waiting=sum(zeros)) if zeros else {}


def _scaled(losses: dict, factor: float) -> dict:
    """Multiply the losses in a dict, and leave other values to log as they are."""
    if factor == 1:
        return losses
    return {name: value if 'loss' not in name else
            [one * factor for one in value] if isinstance(value, (list, tuple)) else value * factor
            for name, value in losses.items()}


def _build_method(name: str, cfg: dict) -> Method:
    if '.' in name or 'loss' in name or hasattr(ModuleDict, name):  # MMEngine adds up all that is a 'loss'
        raise MMKDError(f'A method cannot be called {name!r}; choose another key in `methods`.')
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    if kind is None:
        raise MMKDError(f'The method {name!r} needs a dict with a `type`, such as '
                        "dict(type='mmkd.SHAKE').")
    if isinstance(kind, str) and MODELS.get(kind) is None:
        known = [*PRESETS, 'ProxyDistill', 'LogitDistill', 'FeatureDistill']
        raise MMKDError(f'There is no method {kind!r}{nearest_names(kind.split(".")[-1], known)}; '
                        f'known are {", ".join(known)}.')
    try:
        method = MODELS.build(cfg)
    except (KeyError, TypeError) as error:
        raise MMKDError(f'The method {name!r} has a wrong setting ({one_line(error)}).') from None
    if not isinstance(method, Method):
        raise MMKDError(f'{kind!r} (in methods.{name}) is a {type(method).__name__}, not a method.')
    return method


def _check_gradient(spot: str, seen: list) -> None:
    # The first tensor of a call decides: other outputs of a head may come without one.
    for value in seen:
        while isinstance(value, (tuple, list)) and value:
            value = value[0]
        if isinstance(value, Tensor) and not value.requires_grad:
            raise MMKDError(
                f'What the student gives at the spot {spot!r} carries no gradient, so distilling '
                'there would teach nothing: the layers before it are frozen, or it lies inside a '
                'part under reentrant activation checkpointing.')


def _union(groups) -> list[str]:
    return list(dict.fromkeys(spot for group in groups for spot in group))
