"""Distillation of class logits by other losses than KL."""
from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS, build_checked
from ...settings import NonNegativeFloat
from ..losses import LogitLoss, at_least_float32, standardize_logits
from ..reduction import gather_over_ranks, mean_over_ranks
from ..spots import LogitLayout, logit_layout
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers

_MIXED = '{} needs one true class for every image; it cannot be used with mixed images.'


@MODELS.register_module()
class LogitDistill(Method):
    """The student's class logits imitate the teacher's.

    This is for classifiers and for the boxes of two-stage detectors, whose classes compete (softmax). The
    loss is the mean over images or boxes and over teachers; in a cascade, the cascade stages are summed by
    the cascade's loss weights. :class:`ProxyDistill` distills logits by KL, for dense detectors as well.

    Args:
        loss: The config of a :class:`~mmkd.models.losses.LogitLoss`.
        weight: Loss weight.
        student_task: The weight of the student's task loss.
        standardize: Whether all logits are standardized over classes first.
    """

    takes_choices = True
    output_spots = ('logits', )

    def __init__(self, loss: dict, weight: NonNegativeFloat = 1.0, student_task: NonNegativeFloat = 1.0,
                 standardize: bool = False) -> None:
        super().__init__()
        self.loss = build_checked(loss, LogitLoss, 'loss of class logits', 'loss')
        self.weight = weight
        self.student_task = student_task
        self.standardize = standardize
        self.layout = LogitLayout()

    @property
    def name(self) -> str:
        """The name of the loss, for error messages."""
        return type(self.loss).__name__.removesuffix('Loss')

    @property
    def per_image_obstacle(self) -> str | None:
        return 'it compares boxes with one another' if self.loss.is_relational else None

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers(self.name, teachers)
        self.layout = logit_layout(student, 'student')
        if self.layout.of_queries:
            raise MMKDError(f'{self.name} is for classifiers and two-stage detectors, but the student '
                            f'{type(student).__name__} classifies queries. Use KD.')
        if self.layout.activation != 'softmax' or self.layout.dense:
            raise MMKDError(f'{self.name} compares distributions over classes (softmax), but the student '
                            f'{type(student).__name__} predicts every class independently. Use KD.')
        if self.loss.needs_labels and getattr(student.data_preprocessor, 'batch_augments', None) is not None:
            raise MMKDError(_MIXED.format(self.name))
        for teacher in teachers:
            teacher.require_logits(self.layout)
        self.student_spots = self.teacher_spots = ('cls_outputs', )
        if self.loss.needs_labels and self.layout.of_boxes:
            self.student_spots += ('cls_targets', )

    def forward(self, step: Step, choices: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Compare the logits of a training step.

        Args:
            step: The outputs that were recorded in the training step.
            choices: Which images to distill, one tensor ``(N,)``; by default all of them.

        Returns:
            dict: ``loss_logit``, and what the loss logs.
        """
        self.loss.progress = self.progress
        student = self._logits(step.student_outputs['cls_outputs'])
        labels = self._labels(step) if self.loss.needs_labels else [None] * len(student)
        chosen: Iterable = repeat(None) if choices is None else self.layout.per_row(choices[0], step)
        losses = []
        for outputs in step.teacher_outputs:
            teacher = self._logits(outputs['cls_outputs'])
            stages = zip(self.layout.stage_loss_weights, student, teacher, labels, chosen, strict=False)
            losses.append(sum(stage_weight * self._mean(*rows) for stage_weight, *rows in stages))
        return dict(loss_logit=self.weight * sum(losses) / len(losses), **self.loss.logged())

    def _mean(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None,
              chosen: Tensor | None) -> Tensor:
        """Return the mean of the loss over images or boxes, or over the chosen ones times their share."""
        if self.loss.gather:
            student_logits, teacher_logits = map(gather_over_ranks, (student_logits, teacher_logits))
            chosen = None if chosen is None else gather_over_ranks(chosen)
        if chosen is not None and self.loss.is_relational:
            index = chosen.nonzero()[:, 0]
            if not len(index):
                return student_logits.sum() * 0
            return chosen.mean() * self.loss(student_logits[index], teacher_logits[index])
        values = self.loss(student_logits, teacher_logits, labels)
        if chosen is not None:
            values = chosen * values
        if self.loss.is_relational:
            return values
        # The number of boxes differs between ranks; every box has the same weight.
        return values.sum() / mean_over_ranks(values.new_full((), len(values)))

    def _logits(self, outputs: Sequence) -> list[Tensor]:
        logits = [at_least_float32(stage) for stage in self.layout.logits(outputs)]
        return [standardize_logits(stage) for stage in logits] if self.standardize else logits

    def _labels(self, step: Step) -> list[Tensor]:
        if self.layout.of_images:
            if any('gt_score' in sample for sample in step.data_samples):  # the data pipeline may mix images
                raise MMKDError(_MIXED.format(self.name))
            return [torch.cat([sample.gt_label for sample in step.data_samples])]
        return [args[1] for args, _ in step.student_outputs['cls_targets']]
