"""Distillation of intermediate features."""
import contextlib
from collections.abc import Mapping, Sequence

import torch
from mmengine.model import ModuleList
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import separate_random_state
from ...registry import MODELS, build_checked
from ...settings import NonNegativeInt
from ..losses import FeatureLoss, at_least_float32
from ..spots import common_probe_size, is_classifier, is_query_based, probe, resolve_spot
from ..spots.memory import feature_levels
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers
from .mixins import PhasedMethod, TrainLabelsMethod

OF_QUERIES = ('cls_inputs', 'cls_logits', 'cls_outputs')
"""Spots that belong to queries in query-based detectors."""

Shape = tuple[int, ...]
"""The shape of one sample's feature: ``(C, H, W)`` or ``(C,)``."""


@MODELS.register_module()
class FeatureDistill(PhasedMethod, TrainLabelsMethod, Method):
    """The student's features at some spots imitate the teacher's.

    There is one loss, with its connectors, for each of several teachers; the losses are averaged. Levels of
    two detectors are compared where their maps have the same height and width. So one level is compared with
    a level of the same stride, and levels that only one of the detectors has are left out.

    Args:
        loss: The config of a :class:`~mmkd.models.losses.FeatureLoss`.
        spot: Where to distill: ``'neck'`` (all its levels), ``'memory'`` (the encoder's output of a
            query-based detector, as maps), ``'stages'``, ``'backbone.layer3'``, a list of such names, or a
            dict with the choice for a ``classifier`` and for a ``detector``.
        teacher_spot: Where to read the teacher; by default at the same spots.
        connector: The config of the module that gives every level of the student the teacher's shape, such
            as ``dict(type='mmkd.ConvConnector')``. It is trained together with the student, but is not part
            of it.
        first_phase_epochs: The number of epochs of the first phase, for losses that have one; the total
            number of epochs includes them. Only losses with a first phase count in it.
    """

    takes_choices = True

    def __init__(self, loss: dict,
                 spot: str | Sequence[str] | Mapping[str, str | Sequence[str] | None] = 'neck',
                 teacher_spot: str | Sequence[str] | None = None, connector: dict | None = None,
                 first_phase_epochs: NonNegativeInt = 0) -> None:
        super().__init__()
        self.loss_cfg = loss
        self.spot = spot
        self.teacher_spot = teacher_spot
        self.connector_cfg = connector
        first = self._build_loss()
        self.losses = ModuleList([first])
        self.connectors = ModuleList()
        self.pairs: list[list[tuple[int, int]] | None] = []
        self.has_first_phase = first.has_first_phase
        self.first_phase_epochs = first_phase_epochs
        self.trains_student_first = first.trains_student_first
        self.needs_train_labels = first.needs_train_labels
        if first_phase_epochs and not first.has_first_phase:
            raise MMKDError(f'{type(first).__name__} has no first phase; leave first_phase_epochs at 0.')

    @property
    def name(self) -> str:
        """The name of the loss, for error messages."""
        return type(self.losses[0]).__name__.removesuffix('Loss')

    @property
    def per_image_obstacle(self) -> str | None:
        return None if self.losses[0].masks_single_images else 'it compares images with one another'

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers(self.name, teachers)
        self._choose_spots(student)
        self.losses.extend(self._build_loss() for _ in teachers[1:])
        for teacher, loss in zip(teachers, self.losses, strict=True):
            teacher.require_same_size()
            size = common_probe_size(student, teacher.model)
            student_shapes = _shapes(student, self.student_spots, 'student', size)
            teacher_shapes = _shapes(teacher.model, self.teacher_spots, 'teacher', size)
            pairs = None if is_classifier(student) else _pairs(student_shapes, teacher_shapes)
            self.pairs.append(pairs)
            student_shapes, teacher_shapes = _paired(pairs, student_shapes, teacher_shapes)
            self.shapes = student_shapes, teacher_shapes
            connectors = self._build_connectors(len(student_shapes))
            try:
                self._build_for(loss, connectors, student_shapes, teacher_shapes)
            except MMKDError as error:
                raise MMKDError(
                    f"{self.name} cannot compare the student's features at {_listed(self.student_spots)} "
                    f"with the teacher's features at {_listed(self.teacher_spots)}: {error}.") from None

    def _build_for(self, loss: FeatureLoss, connectors: ModuleList, student_shapes: list[Shape],
                   teacher_shapes: list[Shape]) -> None:
        """Build the layers of the connectors and of the loss of one teacher."""
        if len(student_shapes) != len(teacher_shapes):
            raise MMKDError(f'there are {len(student_shapes)} levels in the student and '
                            f'{len(teacher_shapes)} in the teacher')
        if len(connectors):
            for connector, *shapes in zip(connectors, student_shapes, teacher_shapes, strict=True):
                connector.build(*shapes)
            self.connectors.append(connectors)
            student_shapes = [_output_shape(connector, shape)
                              for connector, shape in zip(connectors, student_shapes, strict=True)]
        loss.build(student_shapes, teacher_shapes)
        if not self.first_phase_epochs:
            loss.end_first_phase()  # parameters that the first phase would have trained stay as they are

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
        """Compare the features of a training step.

        Args:
            step: The outputs that were recorded in the training step.
            choices: For every level, which samples to distill, ``(N,)``; by default all of them. See
                :meth:`~mmkd.models.losses.FeatureLoss.masked`.

        Returns:
            dict: ``loss_feature``, the mean over teachers.
        """
        all_student_levels = self.levels(step.student_outputs, self.student_spots)
        values = []
        for index, (loss, outputs) in enumerate(zip(self.losses, step.teacher_outputs, strict=True)):
            student_levels, teacher_levels = _paired(
                self.pairs[index], all_student_levels, self.levels(outputs, self.teacher_spots))
            # Without autocast, because relations and covariances overflow in half precision.
            with torch.autocast(step.inputs.device.type, enabled=False):
                connected = student_levels
                if self.connectors:
                    connected = [connector(level) for connector, level in
                                 zip(self.connectors[index], student_levels, strict=True)]
                with separate_random_state() if loss.is_stochastic else contextlib.nullcontext():
                    if self.in_first_phase:
                        values.append(loss.first_phase(connected, teacher_levels))
                    elif choices is None:
                        values.append(loss(connected, teacher_levels, step.data_samples))
                    else:
                        values.append(loss.masked(connected, teacher_levels, choices, step.data_samples))
        loss_feature = sum(values) / len(values)
        if self.has_first_phase:  # DDP waits for the gradients of parameters that this phase does not reach
            loss_feature = loss_feature + sum(
                parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad)
        return dict(loss_feature=loss_feature)

    def _choose_spots(self, student: nn.Module) -> None:
        spot = self.spot
        if isinstance(spot, Mapping):
            task = 'classifier' if is_classifier(student) else 'detector'
            choice = spot.get(task)
            if choice is None:
                raise MMKDError(f'{self.name} has no default spot in a {task}; give it a `spot`.')
            spot = choice
        self.student_spots = _as_tuple(spot)
        self.teacher_spots = _as_tuple(self.teacher_spot or spot)

    def _build_loss(self) -> FeatureLoss:
        return build_checked(self.loss_cfg, FeatureLoss, 'loss of features', 'loss')

    def _build_connectors(self, levels: int) -> ModuleList:
        """Return a connector for every level, or none if the config has none."""
        cfg = self.connector_cfg
        known = ['ConvConnector', 'LinearConnector']
        return ModuleList(build_checked(cfg, nn.Module, 'connector', 'connector', known)
                          for _ in range(levels) if cfg is not None)

    @staticmethod
    def levels(outputs: Mapping[str, list], spots: Sequence[str]) -> list[Tensor]:
        """Return the features of all levels at some spots, in float32 at least."""
        return [at_least_float32(level) for spot in spots for level in feature_levels(spot, outputs[spot])]


def _pairs(student: list[Shape], teacher: list[Shape]) -> list[tuple[int, int]] | None:
    """Return which levels of two detectors have the same height and width, as pairs of indices.

    Returns:
        list | None: ``None`` if all levels are compared in their order: those of equally many levels that
        have the same sizes, and levels none of which have the same size.
    """
    pairs = [(first, second) for first, student_shape in enumerate(student)
             for second, teacher_shape in enumerate(teacher)
             if len(student_shape) == 3 and student_shape[1:] == teacher_shape[1:]]
    in_order = [(index, index) for index in range(len(student))] if len(student) == len(teacher) else None
    repeated = any(len(set(indices)) < len(indices) for indices in zip(*pairs, strict=True))
    return None if not pairs or repeated or pairs == in_order else pairs


def _paired(pairs: list[tuple[int, int]] | None, student: list, teacher: list) -> tuple[list, list]:
    """Return the levels of student and teacher that are compared, of two equally long lists."""
    if pairs is None:
        return student, teacher
    return [student[first] for first, _ in pairs], [teacher[second] for _, second in pairs]


def _shapes(model: nn.Module, spots: Sequence[str], role: str, size: tuple[int, int] | None) -> list[Shape]:
    """Return the shape of one sample's feature at every level of some spots."""
    outputs = probe(model, {spot: resolve_spot(model, spot, role) for spot in spots}, size=size)
    shapes = []
    for spot in spots:
        if is_query_based(model) and spot in OF_QUERIES:
            raise MMKDError(
                f'The spot {spot!r} of the {role} {type(model).__name__} belongs to queries, which are not '
                "the same in two networks; distill features at 'neck' or 'memory', or the predictions of "
                'queries with KD and QueryBoxes.')
        levels = feature_levels(spot, outputs[spot])
        if not levels:
            raise MMKDError(
                f'The spot {spot!r} of the {role} {type(model).__name__} is not reached by its backbone, '
                'neck and classification head; features are distilled there.')
        if not all(isinstance(level, Tensor) and level.dim() in (2, 4) for level in levels):
            raise MMKDError(f'The spot {spot!r} of the {role} {type(model).__name__} holds neither feature '
                            'maps (N, C, H, W) nor vectors (N, C).')
        shapes += [tuple(level.shape[1:]) for level in levels]
    return shapes


@torch.no_grad()
def _output_shape(connector: nn.Module, shape: Shape) -> Shape:
    """Return the shape of a connector's output."""
    return tuple(connector.eval()(torch.zeros(1, *shape)).shape[1:])


def _as_tuple(spots: str | Sequence[str]) -> tuple[str, ...]:
    names = (spots, ) if isinstance(spots, str) else spots
    if not isinstance(names, (tuple, list)) or not names or not all(isinstance(name, str) for name in names):
        raise MMKDError(f'A `spot` is a name or a list of names, not {spots!r}.')
    return tuple(names)


def _listed(spots: Sequence[str]) -> str:
    return ', '.join(repr(spot) for spot in spots)
