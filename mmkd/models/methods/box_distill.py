"""Distillation of the box branch of two-stage detectors."""
from collections.abc import Sequence
from typing import Literal

import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat
from ..losses import at_least_float32
from ..reduction import mean_over_ranks
from ..spots import classification_heads, is_two_stage, logit_layout
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers
from .boxes import giou_distance


@MODELS.register_module()
class BoxDistill(Method):
    r"""The box branch of a two-stage detector imitates the teacher's, on the boxes that the student samples.

    .. math:: L = λ \frac{1}{\sum_r w_r} \sum_r w_r \, D(T_r, S_r)

    with T and S the boxes that the two networks refine from the RoI r of the student, for the class of r:
    the sum over stages of a cascade, weighted as in its loss, and the mean over teachers. Teacher and student
    may have different box coders, and box branches for every class or for all.

    Args:
        weight: The weight λ.
        loss: The distance D. ``'giou'``: 1 − GIoU of the boxes. ``'l1'``: the sum of the absolute differences
            of the four deltas in the units of the student's box coder.
        sample_weight: ``'teacher'``: w is the teacher's probability of an object, and the class is the one
            that is most likely for the teacher. ``'foreground'``: w is 1 where the RoI is assigned to an
            object, whose class it is, else 0.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, loss: Literal['giou', 'l1'] = 'giou',
                 sample_weight: Literal['teacher', 'foreground'] = 'teacher') -> None:
        super().__init__()
        self.weight = weight
        self.loss = loss
        self.sample_weight = sample_weight
        self.teachers: list[Teacher] = []

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers('BoxDistill', teachers)
        _require_box_branch(student, 'student')
        self.layout = logit_layout(student, 'student')
        if not self.layout.of_boxes:
            raise MMKDError('BoxDistill is for detectors that refine the boxes of an RPN, but the student is '
                            f'a {type(student).__name__}.')
        for teacher in teachers:
            _require_box_branch(teacher.model, 'teacher')
            teacher.require_logits(self.layout)
        self.teachers = list(teachers)
        self.student_spots = ('cls_outputs', 'rois')
        self.teacher_spots = ('cls_outputs', )
        if self.sample_weight == 'foreground':
            self.student_spots += ('cls_targets', )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compare the boxes of a training step.

        Args:
            step: The outputs that were recorded in the training step.

        Returns:
            dict: ``loss_box``.
        """
        student_heads = classification_heads(step.student)
        total = 0.0
        for teacher, outputs in zip(self.teachers, step.teacher_outputs, strict=True):
            teacher_heads = classification_heads(teacher.model)
            # A cascade may learn from the first stages only, if its teacher has a single one.
            stages = range(min(len(student_heads), len(teacher_heads)))
            for stage, stage_weight in zip(stages, self.layout.stage_loss_weights, strict=False):
                rois = step.student_outputs['rois'][stage]
                student_deltas = step.student_outputs['cls_outputs'][stage][1]
                logits, deltas = outputs['cls_outputs'][stage][:2]
                weights, classes = self._weights_and_classes(step, stage, logits)
                teacher_classes = classes
                if teacher.class_mapping.indices is not None:
                    teacher_classes = classes.new_tensor(teacher.class_mapping.indices)[classes]
                teacher_boxes = _decode(teacher_heads[stage], rois, _of_class(deltas, teacher_classes))
                distances = self._distances(
                    student_heads[stage], rois, _of_class(student_deltas, classes), teacher_boxes)
                mean = (weights * distances).sum() / mean_over_ranks(weights.sum())
                total = total + stage_weight * mean / len(self.teachers)
        return dict(loss_box=self.weight * total)

    def _weights_and_classes(self, step: Step, stage: int, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and the classes of the RoIs of a cascade stage, ``(R,)`` each."""
        if self.sample_weight == 'teacher':
            probabilities = at_least_float32(teacher_logits).softmax(dim=-1)
            return 1 - probabilities[:, -1], probabilities[:, :-1].argmax(dim=-1)
        (_, labels, *_), _ = step.student_outputs['cls_targets'][stage]
        is_object = labels < self.layout.num_classes
        return is_object.to(at_least_float32(teacher_logits)), labels.where(is_object, 0)

    def _distances(self, head: nn.Module, rois: Tensor, deltas: Tensor, teacher_boxes: Tensor) -> Tensor:
        """Compare the student's deltas with the teacher's boxes, ``(R,)``."""
        if self.loss == 'giou':
            return giou_distance(_decode(head, rois, deltas), teacher_boxes)
        targets = head.bbox_coder.encode(rois[:, 1:], teacher_boxes)
        return (deltas - targets).abs().sum(dim=-1)


def _of_class(deltas: Tensor, classes: Tensor) -> Tensor:
    """Return the deltas of one class per box, ``(R, 4)``, of a branch for every class or for all."""
    deltas = at_least_float32(deltas)
    if deltas.shape[1] == 4:
        return deltas
    index = torch.arange(len(classes), device=classes.device)
    return deltas.unflatten(1, (-1, 4))[index, classes]


def _decode(head: nn.Module, rois: Tensor, deltas: Tensor) -> Tensor:
    return get_box_tensor(head.bbox_coder.decode(at_least_float32(rois[:, 1:]), deltas))


def _require_box_branch(model: nn.Module, role: str) -> None:
    if not is_two_stage(model):
        raise MMKDError(f'BoxDistill is for two-stage detectors, but the {role} is a {type(model).__name__}; '
                        'for dense detectors, use BCKD.')
    for head in classification_heads(model):
        coder = getattr(head, 'bbox_coder', None)
        if not isinstance(head, BBoxHead) or not head.with_reg or not isinstance(coder, DeltaXYWHBBoxCoder):
            raise MMKDError('BoxDistill compares box branches that predict deltas (DeltaXYWHBBoxCoder); the '
                            f'{role} has a {type(head).__name__} with a {type(coder).__name__}.')
