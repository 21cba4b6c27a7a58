"""What the logits of a network belong to, and when the logits of two networks can be compared."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from mmdet.models.dense_heads import ATSSVLFusionHead, YOLOXHead
from mmdet.models.roi_heads import SparseRoIHead
from mmdet.structures.bbox import get_box_tensor
from mmpretrain.models.heads import MultiLabelClsHead
from torch import Tensor, nn

from ...errors import MMKDError
from .probing import probe
from .queries import check_query_based, class_branches, has_proposals, is_query_based, queries_of
from .resolve import classification_heads, is_classifier, is_two_stage, resolve_spot

if TYPE_CHECKING:
    from ..step import Step

SampleWeight = Literal['uniform', 'foreground', 'teacher']
"""Ways to weight images, boxes, locations or queries, see :meth:`LogitLayout.weights`."""


@dataclass(frozen=True)
class LogitLayout:
    """How the class logits of a network are laid out.

    Args:
        activation: ``'softmax'`` (for boxes: K classes and, last, the background) or ``'sigmoid'``
            (K classes).
        num_classes: The number of classes K.
        strides: Dense detectors: the stride of every level; empty for other networks.
        anchors: Dense detectors: the number of anchors at a location, per level.
        stage_loss_weights: Two-stage detectors: the weight of each cascade stage in the detector's loss;
            query-based detectors: that of each of the last decoder layers.
        reads: Indices of the head's outputs that make up the scores: the first output, or class and
            objectness (YOLOX).
        of_images: Whether the network is a classifier, with one row of logits for every image.
        standardized_task: Classifiers: whether the task loss compares labels with standardized logits.
        base_anchors: Dense detectors with anchors: per level, the boxes (x1, y1, x2, y2) of a location at
            (0, 0), in pixels.
        of_queries: Whether the logits belong to queries of a decoder.
        proposals: Query-based detectors: whether the encoder's proposals count as one more layer, the first.
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
    of_queries: bool = False
    proposals: bool = False

    @property
    def dense(self) -> bool:
        """Whether the logits belong to fixed locations."""
        return bool(self.strides)

    @property
    def of_boxes(self) -> bool:
        """Whether the logits belong to boxes that another part of the network proposes."""
        return not self.dense and not self.of_images and not self.of_queries

    @property
    def default_sample_weight(self) -> SampleWeight:
        """The ``sample_weight`` that suits the network: most locations and queries are for no object."""
        if self.of_queries:
            return 'teacher'
        return 'foreground' if self.dense else 'uniform'

    @property
    def background(self) -> list[int]:
        """The indices of logits that stand for no class."""
        return [self.num_classes] if self.activation == 'softmax' and not self.of_images else []

    @property
    def channels(self) -> int:
        """The number of logits per image, box or anchor."""
        return self.num_classes + len(self.background)

    def logits(self, outputs: Sequence) -> list[Tensor]:
        """Return flat logits.

        Args:
            outputs: One entry per call of a head, as recorded at ``cls_outputs``.

        Returns:
            list: Classifiers: one tensor ``(N, K)``. Two-stage: ``(R, K+1)`` per cascade stage. Dense: one
            tensor ``(M, K)``, with the M anchors in the order (level, image, row, column, anchor). For YOLOX,
            the logits of class probability times objectness, by which it detects. Query-based:
            ``(N*Q, K)`` or ``(N*Q, K+1)`` per decoder layer, see :meth:`layers`.
        """
        if self.of_images:
            return [image_logits(output) for output in outputs]
        if self.of_queries:
            return [layer.flatten(0, 1) for layer in self.layers(queries_of(outputs).logits)]
        if not self.dense:
            return [output[0] for output in outputs]
        (output, ) = outputs
        levels = [_flat(level, self.channels) for level in output[0]]
        if len(self.reads) > 1:
            objectness = [_flat(level, 1) for level in output[self.reads[1]]]
            levels = [_product_logits(*pair) for pair in zip(levels, objectness, strict=True)]
        return [torch.cat(levels)]

    def layers(self, values: Sequence) -> list:
        """Return the values of those layers of a query-based detector that count.

        These are the last ones, as many as there are ``stage_loss_weights``, and the proposals if they count.

        Args:
            values: A value per layer, in the order of the forward pass.
        """
        number = len(self.stage_loss_weights) - self.proposals
        return [*values[:self.proposals], *values[len(values) - number:]]

    def common(self, other: LogitLayout) -> LogitLayout:
        """Return this layout without the decoder layers and proposals that another network lacks."""
        if not self.of_queries:
            return self
        proposals = self.proposals and other.proposals
        number = min(len(layout.without_proposals().stage_loss_weights) for layout in (self, other))
        weights = self.stage_loss_weights[len(self.stage_loss_weights) - number:]
        if proposals:
            weights = (self.stage_loss_weights[0], *weights)
        return replace(self, stage_loss_weights=weights, proposals=proposals)

    def without_proposals(self) -> LogitLayout:
        """Return this layout without the encoder's proposals."""
        return replace(self, stage_loss_weights=self.stage_loss_weights[self.proposals:], proposals=False)

    def last_layer(self) -> LogitLayout:
        """Return this layout with only the last decoder layer, by which a query-based detector detects."""
        return replace(self.without_proposals(), stage_loss_weights=(1.0, )) if self.of_queries else self

    def weights(self, sample_weight: str, outputs: Sequence, teacher_logits: Sequence[Tensor],
                step: Step) -> list[Tensor]:
        """Return the weight of every image, box, anchor or query.

        Args:
            sample_weight: ``'uniform'``: 1 for each; the only choice for images. ``'foreground'``: 1 inside a
                ground-truth box (dense: the center of the location; two-stage: boxes that were assigned to
                an object; queries: those that the head assigns to an object), 0 elsewhere. ``'teacher'``: the
                teacher's probability of an object of any class (sigmoid: of the most probable class).
                Locations in the padding of an image have weight 0, and so have queries that DDQ discards.
            outputs: The student's head outputs.
            teacher_logits: Flat logits of the teacher or proxy.
            step: The training step.

        Returns:
            list: Shape ``(N,)``, ``(R,)`` or ``(M,)`` for each entry of ``teacher_logits``; without gradient.
        """
        with torch.no_grad():
            if self.of_queries:
                return self._query_weights(sample_weight, outputs, teacher_logits, step)
            if not self.dense:
                return [self._box_weights(sample_weight, stage, logits, step)
                        for stage, logits in enumerate(teacher_logits)]
            weights = self._location_weights(outputs[0][0], step, sample_weight == 'foreground')
            if sample_weight == 'teacher':
                weights = weights * self._object_probability(teacher_logits[0])
            return [weights]

    def per_row(self, values: Tensor, step: Step) -> list[Tensor]:
        """Repeat the value of every image for all rows of :meth:`logits` that belong to it.

        Args:
            values: Shape ``(N,)``.
            step: The training step, with the student's ``rois`` if it is a two-stage detector, and its
                ``cls_outputs`` if it is dense or query-based.

        Returns:
            list: For each entry of :meth:`logits` a tensor ``(N,)``, ``(R,)``, ``(M,)`` or ``(N*Q,)``.
        """
        if self.of_images:
            return [values]
        if self.of_queries:
            layers = self.layers(queries_of(step.student_outputs['cls_outputs']).logits)
            return [values.repeat_interleave(layer.shape[1]) for layer in layers]
        if not self.dense:
            return [values[rois[:, 0].long()] for rois in step.student_outputs['rois']]
        levels = step.student_outputs['cls_outputs'][0][0]
        return [torch.cat([values.repeat_interleave(level[0].numel() // self.channels) for level in levels])]

    def _box_weights(self, sample_weight: str, stage: int, logits: Tensor, step: Step) -> Tensor:
        if sample_weight == 'uniform':
            return logits.new_ones(len(logits))
        if sample_weight == 'teacher':
            return self._object_probability(logits)
        (_, labels, *_), _ = step.student_outputs['cls_targets'][stage]
        return (labels < self.num_classes).to(logits)

    def _query_weights(self, sample_weight: str, outputs: Sequence, teacher_logits: Sequence[Tensor],
                       step: Step) -> list[Tensor]:
        queries = queries_of(outputs)
        weights = [layer.flatten() for layer in self.layers(queries.weights)]
        if sample_weight == 'teacher':
            return [weight * self._object_probability(logits)
                    for weight, logits in zip(weights, teacher_logits, strict=True)]
        if sample_weight == 'foreground':
            labels = [assigned_labels(step.student, logits, boxes, step.data_samples)
                      for logits, boxes in zip(self.layers(queries.logits), self.layers(queries.boxes),
                                               strict=True)]
            return [weight * (label < self.num_classes)
                    for weight, label in zip(weights, labels, strict=True)]
        return weights

    def _object_probability(self, logits: Tensor) -> Tensor:
        if self.activation == 'softmax':
            return 1 - logits.softmax(dim=-1)[:, -1]
        return logits.amax(dim=-1).sigmoid()

    def _location_weights(self, levels: Sequence[Tensor], step: Step, foreground: bool) -> Tensor:
        """Return 1 for anchors whose location is inside the image, or inside a ground-truth box, else 0."""
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
    """Return how the class logits of a network are laid out.

    Args:
        model: The network.
        role: The name of the network in messages, such as ``'student'``.

    Raises:
        MMKDError: If its logits cannot be distilled.
    """
    name = f'The {role} {type(model).__name__}'
    if is_classifier(model):
        return _image_layout(model, name, role)
    if is_query_based(model):
        return _query_layout(model, role)
    if isinstance(getattr(model, 'bbox_head', None), ATSSVLFusionHead):
        raise MMKDError(f'{name} classifies by the words of a text, so its logits cannot be distilled; '
                        "distill its image features instead, for instance with PKD at the spot 'neck'.")
    if isinstance(getattr(model, 'roi_head', None), SparseRoIHead):
        raise MMKDError(f'{name} classifies boxes that its own queries have refined, which another network '
                        'cannot classify, so its logits cannot be distilled; distill features instead, for '
                        "instance with PKD at the spot 'neck'.")
    heads = classification_heads(model)
    if not heads:
        raise MMKDError(
            f'{name} has no class logits that belong to proposed boxes (two-stage), to fixed locations '
            '(dense) or to queries (the DETR family), so they cannot be distilled: detectors of points or '
            'corners are not supported, except for their features.')
    if is_two_stage(model):
        for head in heads:
            if type(head.loss_cls).__name__ != 'CrossEntropyLoss' or getattr(
                    head.loss_cls, 'use_sigmoid', False):
                raise MMKDError(f'The RoI head of the {role} {type(model).__name__} must classify with a '
                                'softmax (CrossEntropyLoss without use_sigmoid) for its logits to be '
                                'distilled.')
        stage_loss_weights = getattr(model.roi_head, 'stage_loss_weights', [1.0])
        return LogitLayout('softmax', heads[0].num_classes, stage_loss_weights=tuple(stage_loss_weights))
    (head, ) = heads
    priors = head.prior_generator
    base_anchors = getattr(priors, 'base_anchors', ())  # point generators have none
    return LogitLayout(
        'sigmoid' if getattr(head, 'use_sigmoid_cls', False) else 'softmax',
        head.num_classes,
        strides=tuple(max(stride) if isinstance(stride, (tuple, list)) else stride
                      for stride in priors.strides),
        anchors=tuple(priors.num_base_priors),
        base_anchors=tuple(tuple(map(tuple, level.tolist())) for level in base_anchors),
        reads=(0, 2) if isinstance(head, YOLOXHead) else (0, ))


def image_logits(output: Any) -> Tensor:
    """Return the logits ``(N, K)`` in the output of a classifier's head."""
    return getattr(output, 'logits', output)  # networks of Hugging Face return an object with more than these


def _image_layout(model: nn.Module, name: str, role: str) -> LogitLayout:
    outputs = probe(model, dict(logits=resolve_spot(model, 'cls_logits', role)))['logits']
    logits = [image_logits(output) for output in outputs]
    if len(logits) != 1 or not isinstance(logits[0], Tensor) or logits[0].dim() != 2:
        raise MMKDError(f'{name} does not output one row of class logits (N, K) for its images, so they '
                        'cannot be distilled, except for its features.')
    multi_label = isinstance(getattr(model, 'head', None), MultiLabelClsHead)
    return LogitLayout('sigmoid' if multi_label else 'softmax', logits[0].shape[1], of_images=True)


def _query_layout(model: Any, role: str) -> LogitLayout:
    check_query_based(model, role)
    head, proposals = model.bbox_head, has_proposals(model)
    # MMDetection weights the losses of all decoder layers and of the proposals alike.
    return LogitLayout('sigmoid' if head.loss_cls.use_sigmoid else 'softmax', head.num_classes,
                       stage_loss_weights=(1.0, ) * (len(class_branches(model)) + proposals),
                       of_queries=True, proposals=proposals)


def assigned_labels(model: Any, logits: Tensor, boxes: Tensor, data_samples: Sequence) -> Tensor:
    """Return the labels that the head of a query-based detector assigns to predictions of a layer.

    Args:
        model: The detector.
        logits: Class logits ``(N, Q, K)``.
        boxes: Boxes ``(N, Q, 4)``, see :class:`~mmkd.models.spots.queries.Queries`.
        data_samples: The samples of the N images, with their objects.

    Returns:
        Tensor: Shape ``(N*Q,)``, int64; the number of classes where there is no object.
    """
    labels, *_ = model.bbox_head.get_targets(
        list(logits.float()), list(boxes.float()), [sample.gt_instances for sample in data_samples],
        [sample.metainfo for sample in data_samples])
    return torch.cat(labels)


def check_comparable(student: LogitLayout, teacher: LogitLayout) -> None:
    """Check that the logits of two networks belong to the same images, boxes or locations.

    Class lists are not compared, see :class:`~mmkd.models.teachers.class_mapping.ClassMapping`.

    Raises:
        MMKDError: If they do not.
    """
    start = 'The logits of student and teacher cannot be compared: '
    end = ' Distill features instead, for instance with PKD, or final detections with PredictionKD.'
    if student.of_images != teacher.of_images:
        raise MMKDError(f'{start}only one of them is a classifier, and the other is a detector.')
    kinds = [_kind(layout) for layout in (student, teacher)]
    if kinds[0] != kinds[1]:
        raise MMKDError(f'{start}the student is a {kinds[0]} detector and the teacher a {kinds[1]} one, so '
                        f'they classify different boxes.{end}')
    if student.activation != teacher.activation:
        raise MMKDError(f'{start}the student classifies with a {student.activation} and the teacher with '
                        f'a {teacher.activation}.{end}')
    if student.reads != teacher.reads:
        scores = ['class times objectness' if len(layout.reads) > 1 else 'class alone'
                  for layout in (student, teacher)]
        raise MMKDError(f'{start}the scores of the student are {scores[0]}, the scores of the teacher '
                        f'{scores[1]}.{end}')
    if student.strides != teacher.strides:
        raise MMKDError(f'{start}the levels have strides {list(student.strides)} in the student and '
                        f'{list(teacher.strides)} in the teacher.{end}')
    if student.anchors != teacher.anchors:
        raise MMKDError(f'{start}there are {list(student.anchors)} anchors per location in the student and '
                        f'{list(teacher.anchors)} in the teacher.{end}')
    if difference := _different_anchor(student, teacher):
        raise MMKDError(f'{start}{difference}, so they classify different boxes.{end}')
    student_stages, teacher_stages = len(student.stage_loss_weights), len(teacher.stage_loss_weights)
    if student.of_boxes and teacher_stages not in (1, student_stages):
        raise MMKDError(f'{start}the student has {student_stages} cascade stages and the teacher '
                        f'{teacher_stages}; every cascade stage classifies boxes that the stage before has '
                        f'refined.{end}')


def _kind(layout: LogitLayout) -> str:
    if layout.of_queries:
        return 'query-based'
    return 'dense' if layout.dense else 'two-stage'


def _different_anchor(student: LogitLayout, teacher: LogitLayout) -> str | None:
    """Describe the first anchor in which two networks with equally many anchors differ.

    A single anchor at a location is not compared: its logits belong to the location, whatever its size.
    """
    for stride, student_boxes, teacher_boxes in zip(
            student.strides, student.base_anchors, teacher.base_anchors, strict=False):
        if len(student_boxes) == 1:
            continue
        pairs = zip(student_boxes, teacher_boxes, strict=True)
        for number, (student_box, teacher_box) in enumerate(pairs, 1):
            # Scales that a config rounds, such as 5.04 for 4 * 2^(1/3), are the same.
            if not all(math.isclose(s, t, abs_tol=stride / 100)
                       for s, t in zip(student_box, teacher_box, strict=True)):
                return (f'of the {len(student_boxes)} anchors at a location of stride {stride}, number '
                        f'{number} is the box {_box_text(student_box)} in the student and '
                        f'{_box_text(teacher_box)} in the teacher')
    return None


def _box_text(box: Sequence[float]) -> str:
    return '({:.1f}, {:.1f}, {:.1f}, {:.1f})'.format(*box)


def _flat(level: Tensor, channels: int) -> Tensor:
    return level.permute(0, 2, 3, 1).reshape(-1, channels)


def _product_logits(classes: Tensor, objectness: Tensor) -> Tensor:
    """Return the logits of the product of two probabilities, of which a and b are the logits.

    They are -log(e^-a + e^-b + e^-(a+b)).
    """
    classes, objectness = classes.float(), objectness.float().expand_as(classes)
    return -torch.logsumexp(torch.stack([-classes, -objectness, -classes - objectness]), dim=0)


def _inside(sample: Any, y: Tensor, x: Tensor, foreground: bool) -> Tensor:
    """Return which locations ``(H, W)`` are inside the image, or inside one of its ground-truth boxes."""
    if not foreground:
        height, width = sample.img_shape[:2]
        return (y < height)[:, None] & (x < width)
    boxes = get_box_tensor(sample.gt_instances.bboxes)[:, None, None]
    x, y = x[None, None, :], y[None, :, None]
    return ((x >= boxes[..., 0]) & (x < boxes[..., 2]) & (y >= boxes[..., 1]) &
            (y < boxes[..., 3])).any(dim=0)
