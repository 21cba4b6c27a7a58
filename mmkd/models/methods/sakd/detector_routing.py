"""SAKD's routing in a detector: the student's head detects on features of both networks."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.utils import unpack_gt_instances
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ....errors import MMKDError
from ....random_state import separate_random_state
from ...connectors import ConvConnector
from ...nested import map_floats
from ...spots import LogitLayout, classification_heads, is_two_stage, probe, resolve_spot, split, stage_names
from ...step import Step
from .routing import first_chosen, mixed, resized_like, run_detached, stage_numbers

OUTPUTS = ('logits', 'boxes')
"""The names of the spots at a detector's outputs."""


class DetectorRouting(nn.Module):
    r"""Runs the student's neck and head on features that come from the teacher where images chose so.

    At a spot with the choice a and the adapter A, a 1x1 convolution with batch norm,

    .. math:: f_S \leftarrow (1 - a) f_S + a A(f_T)

    and the rest of the student continues from there. Its class logits, and the boxes of a dense head, are
    mixed with the teacher's in the same way where they are spots. The student's features before the first
    spot are those of its training step. In contrast to the routing of classifiers, the teacher does not
    continue on features of the student.

    The routed losses of images are those that the student's heads compute for each of them alone, so every
    image has a separate normalizer; some heads (FCOS, ATSS, GFL) average it over the processes of distributed
    training. The losses of masks are left out.

    Args:
        student: The student.
        layout: The layout of the student's logits.
        spots: The names of the spots of features, in order: ``stage1``, ``stage2``, … and ``level1``, …
        shapes: For every spot, the shapes of an image's feature in student and teacher.
        outputs: The names of the spots at the outputs, of :data:`OUTPUTS`.
        skip_unchosen: Whether the routed pass begins at the first stage that an image of the batch has
            chosen. The choices at the stages before it get no gradient.

    Raises:
        MMKDError: If the student's heads cannot give the loss of a single image, or its backbone cannot
            continue from a stage.
    """

    def __init__(self, student: nn.Module, layout: LogitLayout, spots: Sequence[str],
                 shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], outputs: Sequence[str],
                 skip_unchosen: bool = False) -> None:
        super().__init__()
        _check_heads(student)
        self.layout = layout
        self.stages = {int(spot[5:]): spot for spot in spots if spot.startswith('stage')}
        self.levels = [spot for spot in spots if spot.startswith('level')]
        self.outputs = tuple(outputs)
        self.skip_unchosen = skip_unchosen
        self.adapters = nn.ModuleDict()
        for spot, (student_shape, teacher_shape) in zip(spots, shapes, strict=True):
            self.adapters[spot] = ConvConnector(kernel_size=1, relu=False)
            self.adapters[spot].build(teacher_shape, student_shape)
        self.student_spots: tuple[str, ...] = ('features', 'cls_outputs')
        self.teacher_spots: tuple[str, ...] = ('cls_outputs', ) if outputs else ()
        if is_two_stage(student):
            self.student_spots += ('rois', 'cls_targets', 'box_targets')
        if self.stages:
            _check_stages(student, max(self.stages))
            self.student_spots += ('neck_inputs', )

    def forward(self, step: Step, student_features: Mapping[str, Tensor],
                teacher_features: Mapping[str, Tensor], choices: Mapping[str, Tensor]) -> Tensor:
        """Compute the routed loss of every image.

        The student's parameters and batch statistics do not change: gradients reach only the adapters and
        the choices.

        Args:
            step: The training step, with what was recorded at :attr:`student_spots` and
                :attr:`teacher_spots`.
            student_features: The recorded feature ``(N, C, H, W)`` at every spot of features.
            teacher_features: The teacher's features.
            choices: The choices ``(N,)`` at every spot.

        Returns:
            Tensor: Shape ``(N,)``.
        """
        def mix(spot: str, feature: Tensor) -> Tensor:
            adapted = self.adapters[spot](teacher_features[spot])
            return mixed(choices[spot], feature, resized_like(adapted, feature))

        with separate_random_state():  # for the sampling of anchors
            if self.adapters:
                return run_detached(step.student, self._routed_loss, step, student_features, mix, choices)
            outputs = [map_floats(output, Tensor.detach) for output in step.student_outputs['cls_outputs']]
            return self._losses(step.student, step, None, outputs, choices)

    def _routed_loss(self, network: nn.Module, step: Step, student_features: Mapping[str, Tensor],
                     mix: Callable[[str, Tensor], Tensor], choices: Mapping[str, Tensor]) -> Tensor:
        features = self._features(network, step, student_features, mix, choices)
        if is_two_stage(network):
            proposed = network.rpn_head(features) if network.with_rpn else None
            outputs = _classified(network, features, step.student_outputs['rois'])
        else:
            proposed, outputs = None, [network.bbox_head(features)]
        return self._losses(network, step, proposed, outputs, choices)

    def _features(self, network: nn.Module, step: Step, student_features: Mapping[str, Tensor],
                  mix: Callable[[str, Tensor], Tensor],
                  choices: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the routed outputs of the neck."""
        features = [level.detach() for level in step.student_outputs['features'][-1]]
        stages = sorted(self.stages)
        if self.skip_unchosen and stages:
            by_stage = torch.stack([choices[self.stages[number]] for number in stages], dim=1)
            stages = stages[first_chosen(by_stage):]
        if stages:
            outputs = [output.detach() for output in step.student_outputs['neck_inputs'][-1]]
            indices = list(network.backbone.out_indices)
            first = stages[0]
            x = student_features[self.stages[first]].detach()
            for number in range(first, max(indices) + 2):
                if number > first:
                    x = split(network.backbone).stages[number - 1][1](x)
                if number in self.stages:
                    x = mix(self.stages[number], x)
                if number - 1 in indices:
                    outputs[indices.index(number - 1)] = x
            features = list(network.neck(tuple(outputs)))
        if self.levels:
            features = [mix(spot, level) for spot, level in zip(self.levels, features, strict=True)]
        return tuple(features)

    def _losses(self, network: nn.Module, step: Step, proposed: Any, outputs: list,
                choices: Mapping[str, Tensor]) -> Tensor:
        """Return the losses of all images from the outputs of the heads."""
        for output in self.outputs:
            outputs = self._mixed_outputs(step, output, outputs, choices[output])
        images = unpack_gt_instances(step.data_samples)
        if not is_two_stage(network):
            return _per_image(len(step.inputs), lambda index: _dense_loss(
                network.bbox_head, outputs[0], images, index))
        targets = _box_targets(network, step)

        def loss(index: int) -> Tensor:
            total = outputs[0][0].new_zeros(())
            if proposed is not None:
                total = total + _dense_loss(network.rpn_head, proposed, images, index, one_class=True)
            for weight, head, rois, output, target in zip(
                    self.layout.stage_loss_weights, classification_heads(network) * len(outputs),
                    step.student_outputs['rois'], outputs, targets, strict=False):
                rows = rois[:, 0] == index
                values = head.loss(*[value[rows] for value in (*output[:2], rois, *target)])
                total = total + weight * _total(values)
            return total

        return _per_image(len(step.inputs), loss)

    def _mixed_outputs(self, step: Step, output: str, outputs: list, choice: Tensor) -> list:
        """Mix the logits, or the boxes of a dense head, with those of the teacher."""
        teacher_outputs = step.teacher_outputs[0]['cls_outputs']
        if not self.layout.dense:
            rows = self.layout.per_row(choice, step)
            return [(mixed(row, student[0], teacher[0]), *student[1:])
                    for row, student, teacher in zip(rows, outputs, teacher_outputs, strict=True)]
        indices = self.layout.reads if output == 'logits' else (1, )
        (student, ), (teacher, ) = outputs, teacher_outputs
        return [[
            [mixed(choice, s, t) for s, t in zip(levels, teacher[index], strict=True)]
            if index in indices else levels for index, levels in enumerate(student)]]


def detector_spots(student: nn.Module, spots: Sequence[str], number: int) -> list[str]:
    """Return the name of every level that a method reads at some spots.

    Args:
        student: The student detector.
        spots: Names of spots, as in a config.
        number: The number of levels at all spots together.

    Raises:
        MMKDError: If a spot is not a stage or the neck, or the spots are not in the network's order.
    """
    *stages, last = spots
    with_neck = last in ('neck', 'features')
    stages = stages if with_neck else list(spots)
    numbers = stage_numbers(stages, len(stage_names(student.backbone)), 'student')
    names = [f'stage{stage}' for stage in numbers]
    return names + [f'level{level + 1}' for level in range(number - len(names))] if with_neck else names


def same_boxes(student: nn.Module, teacher: nn.Module, layout: LogitLayout) -> bool:
    """Return whether the dense heads of two networks predict boxes in the same form."""
    if not layout.dense:
        return False
    heads = student.bbox_head, teacher.bbox_head
    coders = [repr(getattr(getattr(head, 'bbox_coder', None), '__dict__', None)) for head in heads]
    return type(heads[0]) is type(heads[1]) and coders[0] == coders[1] and getattr(
        heads[0], 'reg_max', None) == getattr(heads[1], 'reg_max', None)


def _check_heads(student: nn.Module) -> None:
    """Check that the losses of single images can be computed from the outputs of the heads."""
    two_stage = is_two_stage(student)
    dense = getattr(student, 'rpn_head' if two_stage else 'bbox_head', None)
    if dense is not None and getattr(type(dense), 'loss', None) is not BaseDenseHead.loss:
        raise _refused(dense)
    if two_stage and not (isinstance(student.roi_head, (StandardRoIHead, CascadeRoIHead)) and all(
            isinstance(head, BBoxHead) for head in classification_heads(student))):
        raise _refused(student.roi_head)


def _refused(head: nn.Module) -> MMKDError:
    return MMKDError(
        f"SAKD's policy learns from the loss of single images, which a {type(head).__name__} does not give; "
        "use a dense head, a StandardRoIHead or a CascadeRoIHead, or another `strategy`.")


def _check_stages(student: nn.Module, last: int) -> None:
    """Check that a backbone's outputs are those of its stages."""
    split(student.backbone)  # which says why, if it cannot
    indices = getattr(student.backbone, 'out_indices', None)
    points = {spot: resolve_spot(student, spot, 'student') for spot in ('stages', 'neck_inputs')}
    outputs = probe(student, points)
    if indices is None or not all(
            torch.equal(outputs['stages'][index], output)
            for index, output in zip(indices, outputs['neck_inputs'][0], strict=True)):
        raise MMKDError('SAKD routes at the stages of backbones whose outputs are those of their stages, '
                        f"such as ResNet's, not of {type(student.backbone).__name__}; distill at the neck.")
    if last - 1 > max(indices):
        raise MMKDError(f'The neck does not read stage{last}, so SAKD cannot route there.')


def _classified(network: nn.Module, features: tuple[Tensor, ...], rois: Sequence[Tensor]) -> list:
    """Return class logits and box offsets of the recorded boxes of every cascade stage."""
    head = network.roi_head
    cascade = isinstance(head.bbox_head, nn.ModuleList)
    results = [head._bbox_forward(stage, features, boxes) if cascade else head._bbox_forward(features, boxes)
               for stage, boxes in enumerate(rois)]
    return [(result['cls_score'], result['bbox_pred']) for result in results]


def _box_targets(network: nn.Module, step: Step) -> list[tuple[Tensor, ...]]:
    """Return labels, their weights, box targets and their weights ``(R, ...)`` of every cascade stage."""
    targets = []
    box_calls = iter(step.student_outputs['box_targets'])
    cls_calls = step.student_outputs['cls_targets']
    for head, (args, _) in zip(classification_heads(network), cls_calls, strict=True):
        labels, label_weights = args[1:3]
        boxes = label_weights.new_zeros(len(labels), 4)
        box_weights = torch.zeros_like(boxes)
        positive = (labels >= 0) & (labels < head.num_classes)
        if positive.any():
            box_args, _ = next(box_calls)
            boxes[positive], box_weights[positive] = box_args[1].to(boxes), box_args[2].to(boxes)
        targets.append((labels, label_weights, boxes, box_weights))
    return targets


def _dense_loss(head: BaseDenseHead, outputs: Sequence, images: tuple, index: int,
                one_class: bool = False) -> Tensor:
    """Return a dense head's loss of one image; ``one_class`` is for the head of region proposals."""
    instances, ignored, metas = (values[index:index + 1] for values in images)
    if one_class:
        instances = [instances[0].clone()]
        instances[0].labels = torch.zeros_like(instances[0].labels)
    outputs = [map_floats(output, lambda level: level[index:index + 1]) for output in outputs]
    return _total(head.loss_by_feat(*outputs, instances, metas, ignored))


def _per_image(number: int, loss: Callable[[int], Tensor]) -> Tensor:
    """Return the losses of all images; all ranks call ``loss`` equally often, because some heads reduce."""
    most = torch.tensor(number)
    all_reduce(most, op='max')
    losses = [loss(min(index, number - 1)) for index in range(int(most))]
    return torch.stack(losses[:number])


def _total(losses: Mapping[str, Any]) -> Tensor:
    """Return the sum of what counts as a loss in the output of a head."""
    values = [value for name, value in losses.items() if 'loss' in name]
    return sum(sum(value) if isinstance(value, (tuple, list)) else value for value in values)
