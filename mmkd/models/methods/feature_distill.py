"""Distillation of intermediate features."""
import contextlib
from collections.abc import Mapping, Sequence

import torch
from mmengine.model import ModuleList
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import separate_random_state
from ...registry import MODELS
from ..losses import FeatureLoss, at_least_float32
from ..spots import common_probe_size, is_classifier, probe, resolve_spot
from ..step import Step
from .base import Method


@MODELS.register_module()
class FeatureDistill(Method):
    """The student's features at some spots imitate the teacher's.

    With several teachers, each has a loss (and connectors) of its own, and their mean is taken.

    Args:
        loss: Config of a :class:`~mmkd.models.losses.FeatureLoss`.
        spot: Where to distil: ``'neck'`` (all its levels), ``'stages'``, ``'backbone.layer3'``, several of
            them in a list, or a dict of choices for ``classifier`` and ``detector``.
        teacher_spot: Where in the teacher; the same names by default.
        connector: Config of what gives every level of the student the teacher's shape, such as
            ``dict(type='mmkd.ConvConnector')``; it is trained with the student and not part of it.
        first_phase_epochs: Of losses with a first stage of training: how many epochs of the whole training it
            takes. Nothing but this method counts in it.
    """

    def __init__(self,
                 loss: dict,
                 spot: str | Sequence[str] | Mapping[str, str | None] = 'neck',
                 teacher_spot: str | Sequence[str] | None = None,
                 connector: dict | None = None,
                 first_phase_epochs: int = 0) -> None:
        super().__init__()
        self.loss_cfg = loss
        self.spot = spot
        self.teacher_spot = teacher_spot
        self.connector_cfg = connector
        one = self._build_loss()
        self.losses, self.connectors = ModuleList([one]), ModuleList()
        self.has_first_phase = one.has_first_phase
        self.first_phase_epochs = first_phase_epochs
        self.trains_student_first = one.trains_student_first
        self.needs_train_labels = one.needs_train_labels
        if first_phase_epochs and not one.has_first_phase:
            raise MMKDError(f'{type(one).__name__} has no first stage; leave first_phase_epochs at 0.')

    @property
    def name(self) -> str:
        """Get what messages call this method."""
        return self.loss_cfg['type'].split('.')[-1].removesuffix('Loss')

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        if not teachers:
            raise MMKDError(f'{self.name} learns from a teacher: give `teacher` a config and a checkpoint.')
        self._choose_spots(student)
        self.losses.extend(self._build_loss() for _ in teachers[1:])
        for teacher, loss in zip(teachers, self.losses, strict=True):
            teacher.require_same_size()
            size = common_probe_size(student, teacher.model)
            own = _shapes(student, self.student_spots, 'student', size)
            other = _shapes(teacher.model, self.teacher_spots, 'teacher', size)
            self.shapes = own, other
            try:
                if len(own) != len(other):
                    raise MMKDError(
                        f'there are {len(own)} levels in the student and {len(other)} in the teacher')
                if self.connector_cfg is not None:
                    self.connectors.append(self._build_connectors(own, other))
                    own = [_shape_of(connector, shape) for connector, shape in
                           zip(self.connectors[-1], own, strict=True)]
                loss.build(own, other)
                if not self.first_phase_epochs:
                    loss.end_first_phase()  # what it would have trained stays as it is
            except MMKDError as error:
                raise MMKDError(
                    f'{self.name} cannot compare what the student gives at {_listed(self.student_spots)} '
                    f'with what the teacher gives at {_listed(self.teacher_spots)}: {error}.') from None

    def set_train_labels(self, labels: Sequence[int]) -> None:
        for loss in self.losses:
            loss.set_train_labels(labels)

    def end_first_phase(self) -> None:
        for loss in self.losses:
            loss.end_first_phase()
        if all(loss.weight == 0 for loss in self.losses):
            self.active = False
            self.requires_grad_(False)

    def forward(self, step: Step, choices: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Args:
            step: What is to be seen of a training step.
            choices: For every level, which samples to distil ``(N,)``; all by default. See
                :meth:`~mmkd.models.losses.FeatureLoss.masked`.

        Returns:
            dict: ``loss_feature``, the mean over teachers.
        """
        own = self.levels(step.student_outputs, self.student_spots)
        values = []
        for index, (loss, seen) in enumerate(zip(self.losses, step.teacher_outputs, strict=True)):
            mine, other = own, self.levels(seen, self.teacher_spots)
            # Outside of autocast: relations and covariances overflow in half precision.
            with torch.autocast(step.inputs.device.type, enabled=False):
                if self.connectors:
                    mine = [connector(level) for connector, level in
                            zip(self.connectors[index], mine, strict=True)]
                with separate_random_state() if loss.is_stochastic else contextlib.nullcontext():
                    if self.in_first_phase:
                        values.append(loss.first_phase(mine, other))
                    elif choices is None:
                        values.append(loss(mine, other, step.data_samples))
                    else:
                        values.append(loss.masked(mine, other, choices, step.data_samples))
        # What is not reached in this stage of training must not be missed by DDP.
        unreached = [parameter.sum() * 0 for parameter in self.parameters()
                     if self.has_first_phase and parameter.requires_grad]
        return dict(loss_feature=sum(values) / len(values) + sum(unreached))

    def _choose_spots(self, student: nn.Module) -> None:
        spot, teacher_spot = self.spot, self.teacher_spot
        if isinstance(spot, Mapping):
            task = 'classifier' if is_classifier(student) else 'detector'
            spot = spot.get(task)
            if spot is None:
                raise MMKDError(f'{self.name} has no usual place in a {task}; give it a `spot`.')
        self.student_spots = _as_tuple(spot)
        self.teacher_spots = _as_tuple(teacher_spot or spot)

    def _build_loss(self) -> FeatureLoss:
        loss = MODELS.build(self.loss_cfg)
        if not isinstance(loss, FeatureLoss):
            raise MMKDError(f'{type(loss).__name__} compares no features.')
        return loss

    def _build_connectors(self, own: Sequence[tuple], other: Sequence[tuple]) -> ModuleList:
        connectors = ModuleList()
        for mine, theirs in zip(own, other, strict=True):
            connector = MODELS.build(self.connector_cfg)
            connector.build(mine, theirs)
            connectors.append(connector)
        return connectors

    @staticmethod
    def levels(seen: Mapping[str, list], spots: Sequence[str]) -> list[Tensor]:
        """Return the features of all levels at some spots, in float32 at least."""
        return [at_least_float32(level) for spot in spots for level in _flattened(seen[spot])]


def _flattened(seen: list) -> list[Tensor]:
    """Return what the calls of a module gave as one list of levels."""
    return [level for call in seen for level in (call if isinstance(call, (tuple, list)) else [call])]


def _shapes(model: nn.Module, spots: Sequence[str], role: str,
            size: tuple[int, int] | None) -> list[tuple[int, ...]]:
    """Return the shape of a sample's feature at every level of some spots."""
    seen = probe(model, {spot: resolve_spot(model, spot, role) for spot in spots}, size=size)
    shapes = []
    for spot in spots:
        levels = _flattened(seen[spot])
        if not levels:
            raise MMKDError(
                f'The spot {spot!r} of the {role} {type(model).__name__} is not reached by its backbone, '
                'neck and classification head; features are distilled there.')
        if not all(isinstance(level, Tensor) and level.dim() in (2, 4) for level in levels):
            raise MMKDError(f'The spot {spot!r} of the {role} {type(model).__name__} holds no feature maps '
                            '(N, C, H, W) or vectors (N, C).')
        shapes += [tuple(level.shape[1:]) for level in levels]
    return shapes


@torch.no_grad()
def _shape_of(connector: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a connector gives a feature."""
    return tuple(connector.eval()(torch.zeros(1, *shape)).shape[1:])


def _as_tuple(spots: str | Sequence[str]) -> tuple[str, ...]:
    spots = (spots, ) if isinstance(spots, str) else spots
    if not isinstance(spots, (tuple, list)) or not spots or not all(isinstance(one, str) for one in spots):
        raise MMKDError(f'A `spot` is a name or a list of names, not {spots!r}.')
    return tuple(spots)


def _listed(spots: Sequence[str]) -> str:
    return ', '.join(repr(spot) for spot in spots)
