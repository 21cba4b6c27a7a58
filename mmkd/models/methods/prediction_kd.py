"""Distillation of final detections, from any detector to any detector."""
from collections.abc import Sequence
from typing import Any, Literal

import torch
from mmcv.ops import nms
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import separate_random_state
from ...registry import MODELS
from ...settings import Fraction, NonNegativeFloat
from ..spots import is_classifier
from ..spots.reuse import preserved_buffers, reused_features
from ..step import Step
from ..teachers import Teacher
from ..teachers.detecting import detect
from .base import Method, check_teachers

OBJECT_IOU = 0.7
"""From this overlap on, boxes belong to one object; fewer would merge objects that a teacher tells apart."""


@MODELS.register_module()
class PredictionKD(Method):
    r"""The teacher's final detections are additional ground truth for the student's loss.

    Teacher and student can be any two detectors, because only boxes with their classes pass between them. The
    head of the student runs once more on its features, and its assigner and losses compare it with the
    detections:

    .. math:: L = w \; E_{\hat Y \sim p} \, L_{task}(S, \hat Y)

    Detections that overlap are one object, whose class probabilities p are their scores. Soft targets are
    drawn: in every training step, every object is present with one of its classes, or absent, with these
    probabilities. In expectation, a loss that is linear in its targets, such as cross-entropy, then equals
    the loss with p as soft labels, and boxes count by p, whatever the assigner and the losses of the student.

    Labels are not needed: with ``student_task=0``, the images may be without. Where only some of them have
    labels, set ``add_labels`` as well.

    Args:
        weight: The weight w, relative to the student's task loss.
        score_threshold: The lowest score of a detection that counts.
        targets: ``'soft'``, or ``'hard'``: every object is present with its most likely class.
        add_labels: Whether the ground truth is added to the detections, and replaces those of the same
            object.
        student_task: The weight of the student's task loss.
    """

    student_spots = ('features', )
    teacher_spots = ('features', )

    def __init__(self, weight: NonNegativeFloat = 1.0, score_threshold: Fraction = 0.3,
                 targets: Literal['soft', 'hard'] = 'soft', add_labels: bool = False,
                 student_task: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.score_threshold = score_threshold
        self.targets = targets
        self.add_labels = add_labels
        self.student_task = student_task
        self.teachers: list[Teacher] = []

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers('PredictionKD', teachers)
        if is_classifier(student):
            raise MMKDError('PredictionKD distills the detections of detectors, and the student '
                            f'{type(student).__name__} is a classifier. Use KD.')
        for teacher in teachers:
            if student.with_mask and not teacher.model.with_mask:
                raise MMKDError(f'The student {type(student).__name__} learns masks, and the teacher '
                                f'{type(teacher.model).__name__} does not predict any; choose a teacher that '
                                'does, or a student without masks.')
            numbers = _num_classes(student), _num_classes(teacher.model)
            if numbers[0] and numbers[1]:
                teacher.class_mapping.check_numbers(numbers[0], numbers[1])
        self.teachers = list(teachers)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compare the student with the teachers' detections.

        Args:
            step: The outputs that were recorded in the training step.

        Returns:
            dict: ``loss_prediction``, the mean over teachers, and ``num_objects``, the mean number of objects
            per image.
        """
        (features, ) = step.student_outputs['features']
        losses, numbers = [], []
        for teacher, outputs in zip(self.teachers, step.teacher_outputs, strict=True):
            detections = detect(teacher, step.inputs, step.data_samples, outputs['features'][0])
            with separate_random_state(), preserved_buffers(step.student):
                samples = [self._sample(*pair) for pair in zip(step.data_samples, detections, strict=True)]
                with reused_features(step.student, features):
                    total, _ = step.student.parse_losses(step.student.task_losses(step.inputs, samples))
            losses.append(total)
            numbers.append(sum(len(sample.gt_instances) for sample in samples) / len(samples))
        return dict(loss_prediction=self.weight * sum(losses) / len(losses),
                    num_objects=step.inputs.new_tensor(numbers).mean())

    def _sample(self, sample: DetDataSample, detections: InstanceData) -> DetDataSample:
        """Return a sample of the batch with detections as its ground truth."""
        size = detections.bboxes[:, 2:] - detections.bboxes[:, :2]
        is_used = (detections.scores >= self.score_threshold) & (size > 1).all(dim=1)
        detections = detections[is_used]
        if self.add_labels:
            labeled = get_box_tensor(sample.gt_instances.bboxes)
            overlaps = bbox_overlaps(detections.bboxes, labeled)
            detections = detections[~(overlaps >= OBJECT_IOU).any(dim=1)]
        indices, labels = chosen_objects(detections, soft=self.targets == 'soft')
        objects = InstanceData(bboxes=detections.bboxes[indices], labels=labels)
        if 'masks' in sample.gt_instances:
            objects.masks = _bitmaps(detections.masks[indices], sample.batch_input_shape)
        relabeled = sample.new()
        relabeled.gt_instances = objects
        if self.add_labels:
            labeled = InstanceData(**{key: sample.gt_instances[key] for key, _ in objects.items()})
            relabeled.gt_instances = InstanceData.cat([labeled, objects])
        return relabeled


def chosen_objects(detections: InstanceData, soft: bool) -> tuple[Tensor, Tensor]:
    """Return the objects among detections, and a class for each of them.

    Detections that overlap by at least :data:`OBJECT_IOU` with a detection of a higher score are the same
    object; its class probabilities are the highest scores of every class, divided by their sum if that is
    above 1.

    Args:
        detections: ``bboxes`` ``(n, 4)``, ``scores`` ``(n,)`` and ``labels`` ``(n,)``.
        soft: Whether the classes are drawn by their probabilities, without the objects of no class, or are
            the most likely ones.

    Returns:
        tuple: The indices of the detections with the highest scores of the objects, ``(m,)``, and the
        objects' classes, ``(m,)``.
    """
    boxes, scores, labels = detections.bboxes, detections.scores, detections.labels
    if not len(boxes):
        return labels, labels
    _, leaders = nms(boxes.float(), scores.float(), OBJECT_IOU)
    if not soft:
        return leaders, labels[leaders]
    groups = bbox_overlaps(boxes, boxes[leaders]).argmax(dim=1)
    # One column more stands for no class.
    probabilities = scores.new_zeros(len(leaders), int(labels.max()) + 2)
    probabilities.view(-1).scatter_reduce_(0, groups * probabilities.shape[1] + labels, scores, 'amax')
    total = probabilities.sum(dim=1, keepdim=True)
    probabilities = probabilities / total.clamp(min=1)
    probabilities[:, -1:] = (1 - total).clamp(min=0)
    classes = torch.multinomial(probabilities, 1)[:, 0]
    is_present = classes < probabilities.shape[1] - 1
    return leaders[is_present], classes[is_present]


def _bitmaps(masks: Tensor, size: tuple[int, int]) -> BitmapMasks:
    """Return predicted masks ``(n, h, w)`` as ground truth of the size of the batch."""
    height, width = masks.shape[-2:]
    return BitmapMasks(masks.cpu().numpy().astype('uint8'), height, width).pad(size)


def _num_classes(model: Any) -> int | None:
    """Return the number of classes of a detector, if its head tells it."""
    head = getattr(getattr(model, 'roi_head', None), 'bbox_head', None) or getattr(model, 'bbox_head', None)
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    return getattr(head, 'num_classes', None)
