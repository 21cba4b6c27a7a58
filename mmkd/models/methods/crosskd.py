"""CrossKD: Cross-Head Knowledge Distillation for Object Detection (Wang et al., CVPR 2024)."""
import copy
from collections.abc import Mapping, Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat, PositiveInt
from ..losses import at_least_float32, bernoulli_kl_divergence
from ..losses.distribution import edge_divergence
from ..losses.quality_focal import quality_focal_divergence
from ..reduction import mean_over_ranks
from ..spots import logit_layout
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers, mean_over_teachers
from .boxes import decoded_boxes, giou_distance
from .dense_targets import Locations, flat, has_known_targets, locations

TOWERS = ('cls_convs', 'reg_convs')
"""The two towers of convolutions of a dense head."""


@MODELS.register_module()
class CrossKD(Method):
    r"""Intermediate features of the student's head pass through the rest of the teacher's head.

    The features behind the i-th convolution of the student's two towers pass through the teacher's frozen
    convolutions i+1, i+2, … and its predictors. These cross-head predictions imitate the teacher's
    predictions at all locations:

    .. math::
        L_{cls} &= λ_{cls} \frac{1}{N} \sum_r c_r \, QFL(\hat P_r, T_r), \quad
        L_{reg} = λ_{reg} \frac{1}{M} \sum_r w_r \, D_{reg}(\hat P_r, T_r)

    with QFL of :func:`quality_focal_divergence`. The weights c are those of the student's classification loss
    (0 in the padding, and for priors that its assigner ignores), and w is the teacher's best class score, 0
    where c is 0. The *teacher's* head decides D_reg and M: KL of box distributions, the mean over edges, and
    the sum of w (GFL); 1 − GIoU and N (RetinaNet, ATSS); −log IoU and N (FCOS). N is the number of priors
    that the student's assigner gives to objects, or the sum of their centerness targets (FCOS). ATSS's
    centerness is distilled where objects are, with λ_reg. All normalizers are averaged over ranks.

    The student's convolutions behind the i-th and its predictors learn from labels only.

    Args:
        layer: i; 3 (of 4) in the paper, 2 for FCOS.
        cls_weight: The weight λ_cls; 0.4 in the released config for FCOS, otherwise 1.
        reg_weight: The weight λ_reg; by default 4 for GFL and 1 for others; 0.75 in the released config for
            FCOS.
        align: Whether the student's features are given the teacher's mean and standard deviation first, see
            :func:`align_statistics`, as in the released code, with which the paper's figures were measured.
    """

    takes_choices = True

    def __init__(self, layer: PositiveInt = 3, cls_weight: NonNegativeFloat = 1.0,
                 reg_weight: NonNegativeFloat | None = None, align: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.cls_weight = cls_weight
        self.reg_weight = reg_weight
        self.align = align
        used = dict(logits=cls_weight > 0, boxes=reg_weight != 0)
        self.output_spots = tuple(name for name in used if used[name])
        self.teachers: list[Teacher] = []
        # The input of the i-th convolution, because its ReLU works in place and overwrites anything later.
        towers = tuple(_spot(tower, layer) for tower in TOWERS)
        self.student_spots = towers
        self.teacher_spots = ('cls_outputs', *(towers if align else ()))

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers('CrossKD', teachers)
        student_channels = _channels(student, self.layer, 'student')
        self.layout = logit_layout(student, 'student')
        if self.layout.activation != 'sigmoid':
            raise MMKDError('CrossKD compares probabilities of sigmoid heads; the student classifies with a '
                            'softmax.')
        for teacher in teachers:
            teacher_channels = _channels(teacher.model, self.layer, 'teacher')
            if student_channels != teacher_channels:
                raise MMKDError('CrossKD needs towers of the same width: behind convolution '
                                f'{self.layer}, the student has {student_channels} channels and the teacher '
                                f'{teacher_channels}.')
            teacher.require_logits(self.layout)
        self.teachers = list(teachers)

    def forward(self, step: Step, choices: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Compare the cross-head predictions with the teachers' predictions.

        Args:
            step: The outputs that were recorded in the training step.
            choices: For each of :attr:`output_spots`, which images to distill, ``(N,)``; by default all of
                them. The divisors remain those of all images.

        Returns:
            dict: ``loss_cls``, ``loss_reg`` and, with an ATSS teacher, ``loss_centerness``, as far as their
            weights are above 0; means over teachers.
        """
        inputs = {tower: step.student_outputs[_spot(tower, self.layer)] for tower in TOWERS}
        head = step.student.bbox_head
        targets = locations(head, inputs['cls_convs'], step.data_samples)
        features = {tower: self._pass(head, tower, levels) for tower, levels in inputs.items()}
        chosen = {} if choices is None else dict(zip(
            self.output_spots, [self.layout.per_row(choice, step)[0] for choice in choices], strict=True))
        return mean_over_teachers([
            self._compare(teacher, self._cross(teacher, features, outputs), outputs['cls_outputs'][0],
                          targets, chosen)
            for teacher, outputs in zip(self.teachers, step.teacher_outputs, strict=True)])

    def _pass(self, head: nn.Module, tower: str, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the output of the i-th convolution of a tower, before its activation."""
        return [_before_activation(getattr(head, tower)[self.layer - 1], level) for level in levels]

    def _cross(self, teacher: Teacher, student_features: Mapping[str, list[Tensor]],
               teacher_outputs: Mapping) -> Sequence:
        """Return the cross-head predictions: the teacher's head outputs for the student's features."""
        head = teacher.model.bbox_head
        features = {}
        for tower, levels in student_features.items():
            if self.align:
                with torch.no_grad():
                    teacher_levels = self._pass(head, tower, teacher_outputs[_spot(tower, self.layer)])
                levels = [align_statistics(student_level, teacher_level)
                          for student_level, teacher_level in zip(levels, teacher_levels, strict=True)]
            else:
                levels = [level.clone() for level in levels]  # the activation may work in place
            conv = getattr(head, tower)[self.layer - 1]
            features[tower] = [conv.activate(level) if conv.with_activation else level for level in levels]
        outputs = _continued(head, features, self.layer)(features['cls_convs'])
        return teacher.class_mapping.outputs([outputs])[0]

    def _compare(self, teacher: Teacher, crossed: Sequence, target: Sequence,
                 locations: Locations, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses between cross-head predictions and a teacher's predictions.

        ``chosen`` has a factor for all locations ``(M,)``, by the output that is distilled.
        """
        student_logits = self.layout.logits([crossed])[0]
        teacher_logits = self.layout.logits([target])[0]
        weights, normalizer = locations.weights, locations.normalizer
        losses = {}
        if self.cls_weight:
            divergence = quality_focal_divergence(student_logits, teacher_logits)
            divergence = chosen.get('logits', 1.0) * divergence
            losses['loss_cls'] = self.cls_weight * (weights * divergence).sum() / normalizer
        head = teacher.model.bbox_head
        reg_weight = self.reg_weight
        if reg_weight is None:
            reg_weight = 4.0 if isinstance(head, GFLHead) else 1.0
        if not reg_weight:
            return losses
        scores = teacher_logits.amax(dim=-1).sigmoid() * (weights > 0)
        if isinstance(head, GFLHead):
            channels = 4 * (head.reg_max + 1)
            student_edges = flat(crossed[1], channels)
            teacher_edges = flat(target[1], channels)
            divergence = edge_divergence(student_edges, teacher_edges, temperature=1.0)
            normalizer = mean_over_ranks(scores.sum())
        else:
            divergence = _box_loss(head, crossed, target)
        divergence = chosen.get('boxes', 1.0) * divergence
        losses['loss_reg'] = reg_weight * (scores * divergence).sum() / normalizer
        if isinstance(head, ATSSHead):
            student_centerness = flat(crossed[2], 1)[locations.positive]
            teacher_centerness = flat(target[2], 1)[locations.positive]
            divergence = bernoulli_kl_divergence(student_centerness, teacher_centerness)
            if 'boxes' in chosen:
                divergence = chosen['boxes'][locations.positive] * divergence
            losses['loss_centerness'] = reg_weight * divergence.sum() / normalizer
        return losses


def align_statistics(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Give the student's features the mean and standard deviation of the teacher's, per channel.

    .. math:: (s - \mu_s) / (\sigma_s + \epsilon) \cdot \sigma_t + \mu_t

    Args:
        student: ``(N, C, H, W)``.
        teacher: ``(N, C, H, W)``.
        eps: The constant ε.
    """
    s, t = at_least_float32(student), at_least_float32(teacher)
    # Both have the same number of positions, so the correction of the standard deviations would cancel out.
    std_s, mean_s = torch.std_mean(s, dim=(0, 2, 3), correction=0, keepdim=True)
    std_t, mean_t = torch.std_mean(t, dim=(0, 2, 3), correction=0, keepdim=True)
    return ((s - mean_s) / (std_s + eps) * std_t + mean_t).to(student.dtype)


class _Features(nn.Module):
    """Replaces the first convolutions of a tower: returns fixed features, one level per call."""

    def __init__(self, levels: Sequence[Tensor]) -> None:
        super().__init__()
        self._levels = iter(levels)

    def forward(self, _: Tensor) -> Tensor:
        return next(self._levels)


def _continued(head: nn.Module, features: Mapping[str, Sequence[Tensor]], layer: int) -> nn.Module:
    """Return a head that shares another head's layers, and whose towers continue from some features."""
    rest = copy.copy(head)
    rest._modules = dict(head._modules)
    for tower, levels in features.items():
        setattr(rest, tower, nn.ModuleList([_Features(levels), *getattr(head, tower)[layer:]]))
    return rest


def _before_activation(conv: ConvModule, feature: Tensor) -> Tensor:
    # The student's batch norm has counted this batch already and must not count it twice.
    buffers = {name: buffer.clone() for name, buffer in conv.named_buffers()}
    return functional_call(conv, buffers, (feature, ), dict(activate=False))


def _box_loss(head: nn.Module, student: Sequence, teacher: Sequence) -> Tensor:
    """Compare the boxes in two outputs of a head, ``(M,)``."""
    student_boxes, teacher_boxes = decoded_boxes(head, student), decoded_boxes(head, teacher)
    if isinstance(head, FCOSHead):
        return -bbox_overlaps(student_boxes, teacher_boxes, is_aligned=True).clamp(min=1e-6).log()
    return giou_distance(student_boxes, teacher_boxes)


def _spot(tower: str, layer: int) -> str:
    return f'bbox_head.{tower}.{layer - 1}:input'


def _channels(model: nn.Module, layer: int, role: str) -> list[int]:
    """Return the width of a head's two towers behind the ``layer``-th convolution."""
    head = getattr(model, 'bbox_head', None)
    towers = [getattr(head, tower, ()) for tower in TOWERS]
    convs = [conv for tower in towers for conv in tower]
    if not has_known_targets(head) or not convs or not all(
            isinstance(conv, ConvModule) for conv in convs):
        kind = type(head or getattr(model, 'roi_head', None) or model).__name__
        raise MMKDError('CrossKD crosses heads with towers `cls_convs` and `reg_convs`, such as those of '
                        f'RetinaNet, ATSS, FCOS and GFL; the {role} has a {kind}.')
    depth = min(len(tower) for tower in towers)
    if not 1 <= layer <= depth:
        raise MMKDError(f"CrossKD's `layer` must lie between 1 and {depth}, the depth of the towers of the "
                        f'{role}, not be {layer}.')
    return [tower[layer - 1].out_channels for tower in towers]
