"""Distillation of intermediate features."""
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..spots import Recorder, resolve_spot
from .base import Method

_PROBE_SIZE = 128


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

    def connect(self, student: nn.Module, teacher, student_cfg: dict) -> None:
        shapes = []
        for model, spot, role in ((student, self.student_spots[0], 'student'),
                                  (teacher.model, self.teacher_spots[0], 'teacher')):
            shapes.append([tuple(level.shape) for level in _probe(model, spot, role)])
        channels = [[shape[1] for shape in levels] for levels in shapes]
        if channels[0] != channels[1]:
            raise MMKDError(
                f'The features at {self.student_spots[0]!r} cannot be compared: the student has channels '
                f'{channels[0]} there, the teacher {channels[1]} at {self.teacher_spots[0]!r}.')

    def forward(self, student: Mapping[str, list], teacher: Mapping[str, list]) -> dict[str, Tensor]:
        """See :meth:`Method.forward`; returns ``loss_feature``."""
        levels = [_levels(seen[spot]) for seen, spot in ((student, self.student_spots[0]),
                                                         (teacher, self.teacher_spots[0]))]
        return dict(loss_feature=self.loss(*levels))


def _levels(seen: list) -> tuple[Tensor, ...]:
    """Flatten what the calls of a module gave into one tuple of levels."""
    return tuple(level for call in seen for level in (call if isinstance(call, (tuple, list)) else [call]))


@torch.no_grad()
def _probe(model: nn.Module, spot: str, role: str) -> tuple[Tensor, ...]:
    """Run a small blank image through the model, in eval mode, and return the features at the spot."""
    device = next(model.parameters()).device
    training = model.training
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with Recorder(model, {spot: resolve_spot(model, spot, role)}) as recorder:
        model.extract_feat(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, device=device))
    if training:
        for module, mode in modes.items():
            module.training = mode
    levels = _levels(recorder[spot])
    if not levels:
        raise MMKDError(
            f'The spot {spot!r} of the {role} {type(model).__name__} is not reached by its backbone and '
            'neck; features are distilled there.')
    if not all(isinstance(level, Tensor) and level.dim() == 4 for level in levels):
        raise MMKDError(f'The spot {spot!r} of the {role} {type(model).__name__} holds no feature maps '
                        '(N, C, H, W).')
    return levels
