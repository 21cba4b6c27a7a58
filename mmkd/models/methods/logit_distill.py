"""Distillation of class logits by other losses than KL."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import MMKDError, check_weight
from ...registry import MODELS
from ..losses import LogitLoss, at_least_float32, standardize_logits
from ..spots import LogitLayout, logit_layout
from ..step import Step
from .base import Method
from .proxy_distill import mean_over_ranks

_MIXED = '{} needs one true class for every image; it cannot be used with images that are mixed.'


@MODELS.register_module()
class LogitDistill(Method):
    """The student's class logits imitate the teacher's.

    For classifiers, and for the boxes of two-stage detectors, for which classes compete (softmax); the mean
    over images or boxes, with several teachers the mean over them, and in a cascade the sum over stages by
    the stages' own weights. KL of logits, by which dense detectors can be taught as well, is
    :class:`ProxyDistill`.

    Args:
        loss: Config of a :class:`~mmkd.models.losses.LogitLoss`.
        weight: Factor of the loss.
        student_task: Factor of the student's own loss.
        standardize: Whether all logits are standardized over classes first.
    """

    def __init__(self,
                 loss: dict,
                 weight: float = 1.0,
                 student_task: float = 1.0,
                 standardize: bool = False) -> None:
        super().__init__()
        self.loss = MODELS.build(loss)
        if not isinstance(self.loss, LogitLoss):
            raise MMKDError(f'{type(self.loss).__name__} compares no class logits.')
        check_weight(weight)
        check_weight(student_task, 'student_task')
        self.weight = weight
        self.student_task = student_task
        self.standardize = standardize
        self.layout = LogitLayout()

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        name = type(self.loss).__name__.removesuffix('Loss')
        if not teachers:
            raise MMKDError(f'{name} learns from a teacher: give `teacher` a config and a checkpoint.')
        self.layout = logit_layout(student, 'student')
        if self.layout.activation != 'softmax' or self.layout.dense:
            raise MMKDError(f'{name} compares distributions over classes (softmax); the student '
                            f'{type(student).__name__} tells for every class whether it is there. Use KD.')
        if self.loss.needs_labels and getattr(student.data_preprocessor, 'batch_augments', None) is not None:
            raise MMKDError(_MIXED.format(name))
        for teacher in teachers:
            teacher.require_logits(self.layout)
        self.student_spots = self.teacher_spots = ('cls_outputs', )
        if self.loss.needs_labels and self.layout.of_boxes:
            self.student_spots += ('cls_targets', )

    def forward(self, step: Step, choices: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Args:
            step: What is to be seen of a training step.
            choices: Which images of a classifier to distil, one tensor ``(N,)``; all by default.

        Returns:
            dict: ``loss_logit``.
        """
        own = self._logits(step.student_outputs['cls_outputs'])
        labels = self._labels(step) if self.loss.needs_labels else [None] * len(own)
        losses = []
        for seen in step.teacher_outputs:
            taught = self._logits(seen['cls_outputs'])
            stages = zip(self.layout.stage_loss_weights, own, taught, labels, strict=False)
            losses.append(sum(factor * self._mean(s, t, y, choices) for factor, s, t, y in stages))
        return dict(loss_logit=self.weight * sum(losses) / len(losses))

    def _mean(self, s: Tensor, t: Tensor, labels: Tensor | None, choices: Sequence[Tensor] | None) -> Tensor:
        if choices is not None and self.loss.is_relational:
            index = choices[0].nonzero()[:, 0]
            return choices[0].mean() * self.loss(s[index], t[index]) if len(index) else s.sum() * 0
        value = self.loss(s, t, labels)
        if choices is not None:
            value = choices[0] * value
        if self.loss.is_relational:
            return value
        # Numbers of boxes differ between ranks; every box counts the same.
        return value.sum() / mean_over_ranks(value.new_full((), len(value)))

    def _logits(self, outputs: Sequence) -> list[Tensor]:
        logits = [at_least_float32(stage) for stage in self.layout.logits(outputs)]
        return [standardize_logits(stage) for stage in logits] if self.standardize else logits

    def _labels(self, step: Step) -> list[Tensor]:
        if self.layout.of_images:
            if any('gt_score' in sample for sample in step.data_samples):  # data may mix images as well
                raise MMKDError(_MIXED.format(type(self.loss).__name__.removesuffix('Loss')))
            return [torch.cat([sample.gt_label for sample in step.data_samples])]
        return [args[1] for args, _ in step.student_outputs['cls_targets']]
