"""Which predictions of two networks are compared: for query-based detectors, this has to be decided."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from mmdet.models.task_modules.assigners import ClassificationCost, FocalLossCost, HungarianAssigner
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor

from ...errors import MMKDError
from .logits import LogitLayout
from .queries import Queries, queries_of

if TYPE_CHECKING:
    from ..step import Step

_NO_OBJECT = 0.01
"""The probability of an object that a query without a partner learns: at which focal heads start."""

_NO_OBJECT_WEIGHT = 0.1
"""The weight of such a query, by which DETR weights its class "no object"."""


class SampleMatch:
    """Decides which predictions are compared; here, those at the same index.

    Args:
        layout: The layout of the student's logits, with the layers that all networks have.
    """

    student_spots: tuple[str, ...] = ()
    """Spots to record in the student."""

    teacher_spots: tuple[str, ...] = ()
    """Spots to record in every teacher."""

    def __init__(self, layout: LogitLayout) -> None:
        self.layout = layout

    def step(self, step: Step, index: int) -> Step:
        """Return a training step with what the student predicts for one of several teachers.

        Args:
            step: The training step.
            index: The index of the teacher.
        """
        return step

    def match(self, step: Step, outputs: Sequence) -> Tensor | None:
        """Match predictions with the student's.

        Args:
            step: The training step.
            outputs: The head outputs of another network.

        Returns:
            Tensor: The index of the prediction for each of the student's queries, ``(L, N, Q)``, int64; −1
            for none. ``None`` if predictions at the same index belong together.
        """
        return None

    def align(self, outputs: Sequence, match: Tensor | None) -> Sequence:
        """Return the head outputs of another network in the order of the student's.

        Args:
            outputs: The head outputs.
            match: The result of :meth:`match`.
        """
        return outputs

    def weights(self, sample_weight: str, student_outputs: Sequence[Sequence],
                outputs: Sequence[Sequence], steps: Sequence[Step]) -> list[list[Tensor]]:
        """Return the weights of the student's predictions, compared with every teacher's.

        Args:
            sample_weight: See :meth:`LogitLayout.weights`.
            student_outputs: For every teacher, the student's head outputs.
            outputs: For every teacher, its head outputs in the order of the student's.
            steps: For every teacher, the training step.

        Returns:
            list: For every teacher, the weights in every stage; here the same ones, by the mean of the
            teachers' logits.
        """
        logits = [self.layout.logits(teacher_outputs) for teacher_outputs in outputs]
        mean = [torch.stack(stages).detach().mean(dim=0) for stages in zip(*logits, strict=True)]
        weights = self.layout.weights(sample_weight, student_outputs[0], mean, steps[0])
        return [weights] * len(steps)


class QueryMatch(SampleMatch):
    """Decides which queries are compared; here, those at the same index."""

    def weights(self, sample_weight: str, student_outputs: Sequence[Sequence],
                outputs: Sequence[Sequence], steps: Sequence[Step]) -> list[list[Tensor]]:
        """Return the weights, by the logits of each teacher; see :meth:`SampleMatch.weights`."""
        all_weights = []
        for student, teacher, step in zip(student_outputs, outputs, steps, strict=True):
            logits = [layer.detach() for layer in self.layout.logits(teacher)]
            weights = self.layout.weights(sample_weight, student, logits, step)
            factors = self.layout.layers(queries_of(teacher).weights)
            all_weights.append([weight * factor.flatten()
                                for weight, factor in zip(weights, factors, strict=True)])
        return all_weights


class HungarianMatch(QueryMatch):
    """Every query of the student is compared with the teacher's query that predicts the same object.

    In every decoder layer, MMDetection's assigner of the student matches one to one by its match costs, with
    the teacher's boxes and the expectation of the class cost over the teacher's class probabilities
    (DETRDistill, Chang et al., ICCV 2023). If the student has more queries than the teacher, those without a
    partner learn "no object". The assignment runs on the CPU, for every image and layer; its time grows with
    the cube of the number of queries.

    Raises:
        MMKDError: If the student's assigner is not a :class:`HungarianAssigner`.
    """

    def __init__(self, layout: LogitLayout, student: Any) -> None:
        super().__init__(layout)
        assigner = getattr(student.bbox_head, 'assigner', None)
        if not isinstance(assigner, HungarianAssigner):
            raise MMKDError("query_match='hungarian' needs a student with a HungarianAssigner, and the "
                            f"student's is a {type(assigner).__name__}.")
        self.assigner = soft_assigner(assigner)

    def match(self, step: Step, outputs: Sequence) -> Tensor | None:
        key = ('match', id(outputs), self.layout)
        if key not in step.results:
            # With the outputs, so that no others get the same id.
            step.results[key] = self._match(step, outputs), outputs
        return step.results[key][0]

    def _match(self, step: Step, outputs: Sequence) -> Tensor:
        shapes = [sample.img_shape[:2] for sample in step.data_samples]
        student, teacher = self._images(step.student_outputs['cls_outputs']), self._images(outputs)
        matches = []
        for student_layer, teacher_layer in zip(student, teacher, strict=True):
            matches.append(torch.stack([
                match_queries(self.assigner, *pair, self.layout.activation)
                for pair in zip(student_layer, teacher_layer, shapes, strict=True)]))
        return torch.stack(matches)

    def _images(self, outputs: Sequence) -> list[list[Queries]]:
        """Return the predictions for every image, layer by layer."""
        layers = zip(*[self.layout.layers(value) for value in queries_of(outputs)], strict=True)
        return [[Queries(*image) for image in zip(*layer, strict=True)] for layer in layers]

    def align(self, outputs: Sequence, match: Tensor | None) -> Sequence:
        if match is None:
            return outputs
        logits, boxes, weights = (torch.stack(self.layout.layers(value)) for value in queries_of(outputs))
        # One more query, at the end, for those without a partner.
        logits = torch.cat([logits, self._no_object(logits)], dim=2)
        boxes = torch.cat([boxes, torch.zeros_like(boxes[:, :, :1])], dim=2)
        weights = torch.cat([weights, weights.new_full(weights[:, :, :1].shape, _NO_OBJECT_WEIGHT)], dim=2)
        index = match.where(match >= 0, boxes.shape[2] - 1)
        return [(_gathered(logits, index), _gathered(boxes, index), weights.gather(2, index))]

    def _no_object(self, logits: Tensor) -> Tensor:
        odds = torch.log(logits.new_tensor(_NO_OBJECT / (1 - _NO_OBJECT)))
        logits = odds.expand(logits[:, :, :1].shape).clone()
        if self.layout.activation == 'softmax':
            logits += torch.log(logits.new_tensor(1 / self.layout.num_classes))
            logits[..., self.layout.background] = 0.0
        return logits


def soft_assigner(assigner: HungarianAssigner) -> HungarianAssigner:
    """Return an assigner with the same match costs that expects class probabilities in place of labels."""
    soft = copy.copy(assigner)
    of_classes = (ClassificationCost, FocalLossCost)
    soft.match_costs = [_ExpectedClassCost(cost) if isinstance(cost, of_classes) else cost
                        for cost in assigner.match_costs]
    return soft


class _ExpectedClassCost:
    """The expectation of a class cost, which is defined for a label, over class probabilities."""

    def __init__(self, cost: ClassificationCost | FocalLossCost) -> None:
        self.cost = cost

    def __call__(self, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs) -> Tensor:
        probabilities = gt_instances.probabilities
        labels = torch.arange(probabilities.shape[1], device=probabilities.device)
        return self.cost(pred_instances, InstanceData(labels=labels), **kwargs) @ probabilities.T


@torch.no_grad()
def match_queries(assigner: HungarianAssigner, student: Queries, teacher: Queries,
                  img_shape: tuple[int, int], activation: str) -> Tensor:
    """Match the queries of two networks in an image, one to one.

    Queries of weight 0 are not matched.

    Args:
        assigner: See :func:`soft_assigner`.
        student: The student's logits ``(Q, K)``, boxes ``(Q, 4)`` and weights ``(Q,)``.
        teacher: The same of the teacher's, ``(Q', …)``.
        img_shape: Height and width of the image in pixels.
        activation: ``'sigmoid'`` or ``'softmax'``.

    Returns:
        Tensor: For each of the student's queries, the index of the teacher's query, or −1; ``(Q,)``, int64.
    """
    with torch.autocast(student.boxes.device.type, enabled=False):  # half precision would change the match
        return _match_queries(assigner, student, teacher, img_shape, activation)


def _match_queries(assigner: HungarianAssigner, student: Queries, teacher: Queries,
                   img_shape: tuple[int, int], activation: str) -> Tensor:
    kept = [queries.weights.nonzero()[:, 0] for queries in (student, teacher)]
    height, width = img_shape
    scale = student.boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    student_logits, teacher_logits = student.logits[kept[0]].float(), teacher.logits[kept[1]].float()
    boxes = [bbox_cxcywh_to_xyxy(queries.boxes[index].float()) * scale
             for queries, index in zip((student, teacher), kept, strict=True)]
    probabilities = teacher_logits.sigmoid() if activation == 'sigmoid' else teacher_logits.softmax(dim=-1)
    result = assigner.assign(
        InstanceData(scores=student_logits, bboxes=boxes[0]),
        InstanceData(labels=teacher_logits.argmax(dim=-1), bboxes=boxes[1], probabilities=probabilities),
        img_meta=dict(img_shape=img_shape))
    match = torch.full_like(student.weights, -1, dtype=torch.long)
    partners = result.gt_inds - 1
    match[kept[0]] = torch.where(partners >= 0, kept[1][partners.clamp(min=0)], partners)
    return match


def _gathered(values: Tensor, index: Tensor) -> Tensor:
    """Select queries of ``(L, N, Q', C)`` by an index ``(L, N, Q)``."""
    return values.gather(2, index[..., None].expand(*index.shape, values.shape[-1]))
