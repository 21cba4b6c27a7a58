"""Distillation of intermediate features."""
from collections.abc import Sequence

from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..spots import probe, resolve_spot
from ..step import Step
from .base import Method


@MODELS.register_module()
class FeatureDistill(Method):
    """The student's features at a spot imitate the teacher's.

    Args:
        loss: Config of a loss that takes two tuples of tensors, one entry per level.
        spot: Where to distil, for instance ``'neck'`` (all its levels) or ``'backbone.layer3'``.
        teacher_spot: Where in the teacher; the same name by default.
    """

    def __init__(self, loss: dict, spot: str = 'neck', teacher_spot: str | None = None) -> None:
        super().__init__()
        self.student_spots = (spot, )
        self.teacher_spots = (teacher_spot or spot, )
        self.loss = MODELS.build(loss)

    def connect(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        if not teachers:
            raise MMKDError('FeatureDistill learns from a teacher: give `teacher` a config and a checkpoint.')
        own = _channels(student, self.student_spots[0], 'student')
        for teacher in teachers:
            other = _channels(teacher.model, self.teacher_spots[0], 'teacher')
            if own != other:
                raise MMKDError(
                    f'The features at {self.student_spots[0]!r} cannot be compared: the student has channels '
                    f'{own} there, the teacher {other} at {self.teacher_spots[0]!r}.')

    def forward(self, step: Step) -> dict[str, Tensor]:
        """See :meth:`Method.forward`; returns ``loss_feature``, the mean over teachers."""
        own = _levels(step.student_seen[self.student_spots[0]])
        losses = [self.loss(own, _levels(seen[self.teacher_spots[0]])) for seen in step.teachers_seen]
        return dict(loss_feature=sum(losses) / len(losses))


def _levels(seen: list) -> tuple[Tensor, ...]:
    """Flatten what the calls of a module gave into one tuple of levels."""
    return tuple(level for call in seen for level in (call if isinstance(call, (tuple, list)) else [call]))


def _channels(model: nn.Module, spot: str, role: str) -> list[int]:
    """Return the number of channels of every level at a spot."""
    levels = _levels(probe(model, {spot: resolve_spot(model, spot, role)})[spot])
    if not levels:
        raise MMKDError(
            f'The spot {spot!r} of the {role} {type(model).__name__} is not reached by its backbone and '
            'neck; features are distilled there.')
    if not all(isinstance(level, Tensor) and level.dim() == 4 for level in levels):
        raise MMKDError(f'The spot {spot!r} of the {role} {type(model).__name__} holds no feature maps '
                        '(N, C, H, W).')
    return [level.shape[1] for level in levels]
