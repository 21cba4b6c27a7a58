"""Distillation of the boxes that the queries of the DETR family predict."""
from collections.abc import Sequence

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat
from ..reduction import mean_over_ranks
from ..spots import (
    LogitLayout,
    QueryMatching,
    SampleMatch,
    SampleWeight,
    build_match,
    logit_layout,
    queries_of,
)
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers, mean_over_teachers


@MODELS.register_module()
class QueryBoxes(Method):
    r"""The boxes of a query-based student imitate its teacher's (DETRDistill, Chang et al., ICCV 2023).

    .. math:: L = \sum_l \frac{\sum_q w_q \, (λ_1 \, ‖b_q - b^T_q‖_1 + λ_2 \, (1 - GIoU(b_q, b^T_q)))}
                            {\sum_q w_q}

    over the decoder layers l and the queries q of all images and ranks, with boxes relative to the image, as
    in DETR's loss. Use it beside :class:`KD`, which compares the classes of the same queries. Queries
    without a partner do not count.

    Args:
        l1_weight: The weight λ₁; by default DETR's.
        giou_weight: The weight λ₂; by default DETR's.
        sample_weight: Which queries count, see :meth:`~mmkd.models.spots.LogitLayout.weights`; by default,
            ``'teacher'``.
        query_match: Which queries are compared, see :class:`ProxyDistill`.
    """

    def __init__(self, l1_weight: NonNegativeFloat = 5.0, giou_weight: NonNegativeFloat = 2.0,
                 sample_weight: SampleWeight = 'teacher', query_match: QueryMatching = 'hungarian') -> None:
        super().__init__()
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.sample_weight = sample_weight
        self.query_match = query_match
        self.layout = LogitLayout()
        self.match = SampleMatch(self.layout)

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers('QueryBoxes', teachers)
        self.layout = logit_layout(student, 'student')
        if not self.layout.of_queries:
            raise MMKDError('QueryBoxes compares boxes of queries (the DETR family), and the student '
                            f'{type(student).__name__} has none; LD and CrossKD distill the boxes of dense '
                            'detectors.')
        for teacher in teachers:
            self.layout = self.layout.common(teacher.require_logits(self.layout))
        self.match = build_match(self.query_match, self.layout, student, teachers)
        self.layout = self.match.layout
        self.student_spots = ('cls_outputs', *self.match.student_spots)
        self.teacher_spots = ('cls_outputs', *self.match.teacher_spots)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compare the boxes of a training step.

        Args:
            step: The outputs that were recorded in the training step.

        Returns:
            dict: ``loss_l1`` and ``loss_giou``, as far as their weights are above 0; means over teachers.
        """
        steps = [self.match.step(step, index) for index in range(len(step.teacher_outputs))]
        matches = [self.match.match(step, outputs['cls_outputs'])
                   for step, outputs in zip(steps, step.teacher_outputs, strict=True)]
        student_outputs = [step.student_outputs['cls_outputs'] for step in steps]
        teacher_outputs = [self.match.align(outputs['cls_outputs'], match)
                           for outputs, match in zip(step.teacher_outputs, matches, strict=True)]
        weights = self.match.weights(self.sample_weight, student_outputs, teacher_outputs, steps)
        return mean_over_teachers([
            self._compare(*compared)
            for compared in zip(student_outputs, teacher_outputs, matches, weights, strict=True)])

    def _compare(self, student: Sequence, teacher: Sequence, match: Tensor | None,
                 weights: list[Tensor]) -> dict[str, Tensor]:
        student_boxes, teacher_boxes = (
            torch.stack(self.layout.layers(queries_of(outputs).boxes)).flatten(1, 2).float()
            for outputs in (student, teacher))
        weight = torch.stack(weights)
        if match is not None:
            weight = weight * (match >= 0).flatten(1)
        # Proposals of the encoder are recorded without a gradient.
        layers = slice(int(self.layout.proposals), None)
        student_boxes, teacher_boxes = student_boxes[layers], teacher_boxes[layers].detach()
        weight = weight[layers]
        normalizers = torch.stack([mean_over_ranks(layer.sum()) for layer in weight])[:, None]
        weight = weight / normalizers
        losses = {}
        if self.l1_weight:
            distance = (student_boxes - teacher_boxes).abs().sum(dim=-1)
            losses['loss_l1'] = self.l1_weight * (weight * distance).sum()
        if self.giou_weight:
            overlap = bbox_overlaps(bbox_cxcywh_to_xyxy(student_boxes), bbox_cxcywh_to_xyxy(teacher_boxes),
                                    mode='giou', is_aligned=True, eps=1e-12)
            losses['loss_giou'] = self.giou_weight * (weight * (1 - overlap)).sum()
        return losses
