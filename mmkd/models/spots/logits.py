"""What the logits of a network belong to, and when those of two networks can be compared."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.models.dense_heads import YOLOXHead
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

try:
    from mmpretrain.models.heads import MultiLabelClsHead
except ImportError:  # needed for classifiers only
    MultiLabelClsHead = ()

from ...errors import MMKDError
from .probing import probe
from .resolve import classification_heads, is_classifier, is_two_stage, resolve_spot

SAMPLE_WEIGHTS = ('uniform', 'foreground', 'teacher')
"""Where logits count, see :meth:`LogitLayout.weights`."""


@dataclass(frozen=True)
class LogitLayout:
    """How a network lays out its class logits.

    Args:
        activation: ``'softmax'`` (of boxes: K classes and, last, the background) or ``'sigmoid'``
            (K classes).
        num_classes: K.
        strides: Dense detectors: the stride of every level; empty for others.
        anchors: Dense detectors: the number of anchors at a location, per level.
        stage_loss_weights: Two-stage detectors: the weight of each stage in the detector's own loss.
        reads: Which of the head's outputs make up the logits: the first, or class and objectness (YOLOX).
        of_images: Whether this is a classifier, with a row of logits for every image.
        standardized_task: Classifiers: whether labels are compared with standardized logits.
        base_anchors: Dense detectors with anchors: per level, the boxes (x1, y1, x2, y2) around a location at 0.
    """
    activation: str = 'softmax'
    num_classes: int = 0
    strides: tuple[int, ...] = ()
    anchors: tuple[int, ...] = ()
    stage_loss_weights: tuple[float, ...] = (1.0, )
    reads: tuple[int, ...] = (0, )
    of_images: bool = False
    standardized_task: bool = False
    base_anchors: tuple[tuple[tuple[float, ...], ...], ...] = ()

    @property
    def dense(self) -> bool:
        """Whether logits are of fixed locations."""
        return bool(self.strides)

    @property
    def of_boxes(self) -> bool:
        """Whether logits are of boxes that another part of the network proposes."""
        return not self.dense and not self.of_images

    @property
    def background(self) -> list[int]:
        """Which logits speak of no class."""
        return [self.num_classes] if self.activation == 'softmax' and not self.of_images else []

    @property
    def channels(self) -> int:
        """Logits of an image, box or anchor."""
        return self.num_classes + len(self.background)

    def logits(self, outputs: Sequence) -> list[Tensor]:
        """Return flat logits.

        Args:
            outputs: What was recorded at ``cls_outputs``: an entry per call of a head.

        Returns:
            list: Classifiers: one tensor ``(N, K)``. Two-stage: ``(R, K+1)`` per stage. Dense: one tensor
            ``(M, K)``, with the M anchors in the order (level, image, row, column, anchor). For YOLOX, the
            logits of class probability times objectness, which is what it detects by.
        """
        if self.of_images:
            return [_image_logits(output) for output in outputs]
        if not self.dense:
            return [output[0] for output in outputs]
        (output, ) = outputs
        levels = [_flat(level, self.channels) for level in output[0]]
        if len(self.reads) > 1:
            levels = [_joint(level, _flat(other, 1)) for level, other in zip(
                levels, output[self.reads[1]], strict=True)]
        return [torch.cat(levels)]

    def select_classes(self, outputs: Sequence, indices: Tensor) -> list:
        """Pick and reorder classes in a head's outputs.

        Args:
            outputs: As for :meth:`logits`, with this layout's classes.
            indices: Which channels to take, in order.
        """
        if self.of_images:
            return [_image_logits(output)[:, indices] for output in outputs]
        if not self.dense:
            return [(output[0][:, indices], *output[1:]) for output in outputs]
        (output, ) = outputs
        levels = [
            level.unflatten(1, (-1, self.channels))[:, :, indices].flatten(1, 2) for level in output[0]]
        return [(levels, *output[1:])]

    def weights(self, sample_weight: str, outputs: Sequence, teaching: Sequence[Tensor], step) -> list[Tensor]:
        """Return how much every box or anchor counts.

        Args:
            sample_weight: ``'uniform'``: each counts 1; the only choice for images. ``'foreground'``: 1 inside a
                ground-truth box (dense: the center of the location; two-stage: boxes that were assigned to an
                object), 0 elsewhere. ``'teacher'``: the teacher's probability that an object of any class
                is there (dense: of its likeliest class). Places in the padding of an image count 0.
            outputs: The student's head outputs.
            teaching: Flat logits of who teaches.
            step (Step): The training step.

        Returns:
            list: Shape ``(N,)``, ``(R,)`` or ``(M,)`` for each entry of ``teaching``; without gradient.
        """
        with torch.no_grad():
            if not self.dense:
                return [self._box_weights(sample_weight, index, logits, step)
                        for index, logits in enumerate(teaching)]
            weights = self._location_weights(outputs[0][0], step, sample_weight == 'foreground')
            if sample_weight == 'teacher':
                weights = weights * self._objectness(teaching[0])
            return [weights]

    def _box_weights(self, sample_weight: str, stage: int, logits: Tensor, step) -> Tensor:
        if sample_weight == 'uniform':
            return logits.new_ones(len(logits))
        if sample_weight == 'teacher':
            return self._objectness(logits)
        (_, labels, *_), _ = step.student_outputs['cls_targets'][stage]
        return (labels < self.num_classes).to(logits)

    def _objectness(self, logits: Tensor) -> Tensor:
        if self.activation == 'softmax':
            return 1 - logits.softmax(dim=-1)[:, -1]
        return logits.amax(dim=-1).sigmoid()

    def _location_weights(self, levels: Sequence[Tensor], step, foreground: bool) -> Tensor:
        """1 for locations inside the image, or inside one of its ground-truth boxes."""
        height, width = step.inputs.shape[-2:]
        weights = []
        for level, anchors in zip(levels, self.anchors, strict=True):
            rows, columns = level.shape[-2:]
            y = (torch.arange(rows, device=level.device) + 0.5) * (height / rows)
            x = (torch.arange(columns, device=level.device) + 0.5) * (width / columns)
            maps = torch.stack([_inside(sample, y, x, foreground) for sample in step.data_samples])
            weights.append(maps.flatten().to(level.dtype).repeat_interleave(anchors))
        return torch.cat(weights)


def logit_layout(model: nn.Module, role: str) -> LogitLayout:
    """Return how a network lays out its class logits.

    Args:
        model: The network.
        role: How messages call it.

    Raises:
        MMKDError: If its logits cannot be distilled, telling why.
    """
    name = f'The {role} {type(model).__name__}'
    if is_classifier(model):
        return _layout_of_images(model, name, role)
    heads = classification_heads(model)
    if not heads:
        raise MMKDError(
            f'{name} has no class logits that belong to boxes of its own (two-stage) or to fixed locations '
            '(dense), so they cannot be distilled: query-based detectors and detectors of points or '
            'corners are not supported, except for their features.')
    if is_two_stage(model):
        for head in heads:
            if type(head.loss_cls).__name__ != 'CrossEntropyLoss' or getattr(
                    head.loss_cls, 'use_sigmoid', False):
                raise MMKDError(f"{name}'s RoI head must classify with a softmax (CrossEntropyLoss without "
                                'use_sigmoid) for its logits to be distilled.')
        stages = getattr(model.roi_head, 'stage_loss_weights', [1.0])
        return LogitLayout('softmax', heads[0].num_classes, stage_loss_weights=tuple(stages))
    (head, ) = heads
    priors = head.prior_generator
    boxes = getattr(priors, 'base_anchors', ())  # locations without boxes have none
    return LogitLayout(
        'sigmoid' if getattr(head, 'use_sigmoid_cls', False) else 'softmax',
        head.num_classes,
        strides=tuple(max(stride) if isinstance(stride, (tuple, list)) else stride
                      for stride in priors.strides),
        anchors=tuple(priors.num_base_priors),
        base_anchors=tuple(tuple(map(tuple, level.tolist())) for level in boxes),
        reads=(0, 2) if isinstance(head, YOLOXHead) else (0, ))


def _layout_of_images(model: nn.Module, name: str, role: str) -> LogitLayout:
    seen = probe(model, dict(seen=resolve_spot(model, 'cls_logits', role)))['seen']
    logits = [_image_logits(output) for output in seen]
    if len(logits) != 1 or not isinstance(logits[0], Tensor) or logits[0].dim() != 2:
        raise MMKDError(f'{name} does not give one row of class logits (N, K) for its images, so they cannot '
                        'be distilled, except for its features.')
    multi_label = isinstance(getattr(model, 'head', None), MultiLabelClsHead)
    return LogitLayout('sigmoid' if multi_label else 'softmax', logits[0].shape[1], of_images=True)


def check_comparable(student: LogitLayout, teacher: LogitLayout) -> None:
    """Check that two networks' logits speak of the same images, boxes or locations; classes are left aside.

    Raises:
        MMKDError: If they do not, telling why.
    """
    start = 'The logits of student and teacher cannot be compared: '
    end = ' Distil features instead, for instance with PKD.'
    if student.of_images != teacher.of_images:
        raise MMKDError(f'{start}one is a classifier and the other a detector.')
    if student.dense != teacher.dense:
        kinds = ['dense' if layout.dense else 'two-stage' for layout in (student, teacher)]
        raise MMKDError(f'{start}the student is a {kinds[0]} detector and the teacher a {kinds[1]} one, so '
                        f'that they judge other boxes.{end}')
    if student.activation != teacher.activation:
        raise MMKDError(f'{start}the student classifies with a {student.activation} and the teacher with '
                        f'a {teacher.activation}.{end}')
    if student.reads != teacher.reads:
        scores = ['class times objectness' if len(layout.reads) > 1 else 'class alone'
                  for layout in (student, teacher)]
        raise MMKDError(f"{start}the student's scores are of {scores[0]}, the teacher's of {scores[1]}.{end}")
    if student.strides != teacher.strides:
        raise MMKDError(f'{start}the levels have strides {list(student.strides)} in the student and '
                        f'{list(teacher.strides)} in the teacher.{end}')
    if student.anchors != teacher.anchors:
        raise MMKDError(f'{start}there are {list(student.anchors)} anchors per location in the student and '
                        f'{list(teacher.anchors)} in the teacher.{end}')
    if difference := _other_anchor(student, teacher):
        raise MMKDError(f'{start}{difference}, so that they judge other boxes.{end}')
    stages = len(student.stage_loss_weights), len(teacher.stage_loss_weights)
    if stages[1] not in (1, stages[0]):
        raise MMKDError(f'{start}the student has {stages[0]} stages and the teacher {stages[1]}; every '
                        f'stage of a cascade judges boxes that the one before has refined.{end}')


def _other_anchor(student: LogitLayout, teacher: LogitLayout) -> str | None:
    """Return in which anchor two networks with as many of them differ, in words.

    Where there is one at a location, its size says nothing about what the logits are of.
    """
    for stride, own, other in zip(student.strides, student.base_anchors, teacher.base_anchors, strict=False):
        for number, (mine, theirs) in enumerate(zip(own, other, strict=True), 1):
            # Scales that a config rounds, such as 5.04 for 4 * 2^(1/3), are the same.
            same = all(math.isclose(a, b, abs_tol=stride / 100) for a, b in zip(mine, theirs, strict=True))
            if len(own) > 1 and not same:
                boxes = ['({:.1f}, {:.1f}, {:.1f}, {:.1f})'.format(*box) for box in (mine, theirs)]
                return (f'of the {len(own)} anchors at a location of stride {stride}, number {number} is the '
                        f'box {boxes[0]} in the student and {boxes[1]} in the teacher')
    return None


def _image_logits(output) -> Tensor:
    return getattr(output, 'logits', output)  # networks of Hugging Face give more than these


def _flat(level: Tensor, channels: int) -> Tensor:
    return level.permute(0, 2, 3, 1).reshape(-1, channels)


def _joint(classes: Tensor, objectness: Tensor) -> Tensor:
    """Logits of the product of two probabilities given as logits: -log(e^-a + e^-b + e^-(a+b))."""
    classes, objectness = classes.float(), objectness.float().expand_as(classes)
    return -torch.logsumexp(torch.stack([-classes, -objectness, -classes - objectness]), dim=0)


def _inside(sample, y: Tensor, x: Tensor, foreground: bool) -> Tensor:
    if not foreground:
        height, width = sample.img_shape[:2]
        return (y < height)[:, None] & (x < width)
    boxes = get_box_tensor(sample.gt_instances.bboxes)[:, None, None]
    x, y = x[None, None, :], y[None, :, None]
    return ((x >= boxes[..., 0]) & (x < boxes[..., 2]) & (y >= boxes[..., 1]) &
            (y < boxes[..., 3])).any(dim=0)
