"""CrossKD: Cross-Head Knowledge Distillation for Object Detection (Wang et al., CVPR 2024)."""
import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import reduce_mean
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import MMKDError, check_weight
from ...registry import MODELS
from ..losses import at_least_float32, bernoulli_kl_divergence
from ..losses.distribution import edge_divergence
from ..spots import logit_layout
from ..step import Step
from .base import Method
from .ld import assign, flat

TOWERS = ('cls_convs', 'reg_convs')
"""The two towers of a dense head."""


@MODELS.register_module()
class CrossKD(Method):
    r"""What the student's head has computed half-way goes on through the teacher's head.

    Features behind the i-th convolution of the student's two towers pass the teacher's frozen convolutions
    i+1, i+2, … and its predictors. These cross-head predictions imitate the teacher's own, at all places:

    .. math::
        L_{cls} &= λ_{cls} \frac{1}{N} \sum_r c_r \, QFL(T_r, \hat P_r), \quad
        L_{reg} = λ_{reg} \frac{1}{M} \sum_r w_r \, D_{reg}(T_r, \hat P_r)

    with QFL of :func:`quality_focal_divergence`, the weights c of the student's own classification loss (0 in
    the padding, and for priors that its assigner leaves out), and w the teacher's best class score, 0 where c
    is. What D_reg and M are, the *teacher's* head decides: KL of box distributions, the mean over edges, and
    the sum of w (GFL); 1 − GIoU and N (RetinaNet, ATSS); −log IoU and N (FCOS). N is the number of priors
    that the student's assigner gives to objects, or the sum of their centerness targets (FCOS). ATSS's
    centerness is taught where objects are, with λ_reg. All normalizers are averaged over ranks.

    The student's head itself, which learns from labels, has no part in the losses behind its i-th
    convolution.

    Args:
        layer: i: 3 (of 4) in the paper, 2 for FCOS.
        cls_weight: λ_cls; 0.4 in the released config for FCOS, else 1.
        reg_weight: λ_reg; by default 4 for GFL and 1 for others; 0.75 in the released config for FCOS.
        align: Whether the student's features are given the teacher's mean and standard deviation first, see
            :func:`align_statistics`, as in the released code, whose figures the paper's are.
    """

    def __init__(self,
                 layer: int = 3,
                 cls_weight: float = 1.0,
                 reg_weight: float | None = None,
                 align: bool = True) -> None:
        super().__init__()
        check_weight(cls_weight, 'cls_weight')
        if reg_weight is not None:
            check_weight(reg_weight, 'reg_weight')
        self.layer = layer
        self.cls_weight = cls_weight
        self.reg_weight = reg_weight
        self.align = align
        self.teachers = []
        # What the i-th convolution is given: its ReLU works in place, so nothing before that can be recorded.
        towers = tuple(_spot(tower, layer) for tower in TOWERS)
        self.student_spots = towers
        self.teacher_spots = ('cls_outputs', *(towers if align else ()))

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        if not teachers:
            raise MMKDError('CrossKD learns from a teacher: give `teacher` a config and a checkpoint.')
        own = _channels(student, self.layer, 'student')
        self.layout = logit_layout(student, 'student')
        if self.layout.activation != 'sigmoid':
            raise MMKDError('CrossKD compares probabilities of sigmoid heads; the student classifies with a '
                            'softmax.')
        for teacher in teachers:
            other = _channels(teacher.model, self.layer, 'teacher')
            if own != other:
                raise MMKDError('CrossKD needs towers of the same width: behind convolution '
                                f'{self.layer}, the student has {own} channels and the teacher {other}.')
            teacher.require_logits(self.layout)
        self.teachers = list(teachers)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Returns:
            dict: ``loss_cls``, ``loss_reg`` and, with a teacher of ATSS, ``loss_centerness``, as far as they
            have a weight; means over teachers.
        """
        inputs = {tower: step.student_outputs[_spot(tower, self.layer)] for tower in TOWERS}
        head = step.student.bbox_head
        places = _places(head, inputs['cls_convs'], step.data_samples)
        passed = {tower: self._pass(head, tower, levels) for tower, levels in inputs.items()}
        terms = {}
        for teacher, seen in zip(self.teachers, step.teacher_outputs, strict=True):
            crossed = self._cross(teacher, passed, seen)
            for name, value in self._compare(teacher, seen['cls_outputs'][0], crossed, places).items():
                terms[name] = terms.get(name, 0) + value / len(self.teachers)
        return terms

    def _pass(self, head: nn.Module, tower: str, levels: Sequence[Tensor]) -> list[Tensor]:
        return [_before_activation(getattr(head, tower)[self.layer - 1], level) for level in levels]

    def _cross(self, teacher, passed: Mapping[str, list[Tensor]], seen: Mapping) -> Sequence:
        """Return the head outputs of what the student's towers gave, in the student's classes."""
        head = teacher.model.bbox_head
        features = {}
        for tower, levels in passed.items():
            if self.align:
                with torch.no_grad():
                    own = self._pass(head, tower, seen[_spot(tower, self.layer)])
                levels = [align_statistics(s, t) for s, t in zip(levels, own, strict=True)]
            else:
                levels = [level.clone() for level in levels]  # the activation may work in place
            conv = getattr(head, tower)[self.layer - 1]
            features[tower] = [conv.activate(level) if conv.with_activation else level for level in levels]
        outputs = _continued(head, features, self.layer)(features['cls_convs'])
        return teacher.in_students_outputs([outputs])[0]

    def _compare(self, teacher, target: Sequence, crossed: Sequence, places: tuple) -> dict:
        counts, positive, total = places
        t, p = (self.layout.logits([outputs])[0] for outputs in (target, crossed))
        terms = {}
        if self.cls_weight:
            terms['loss_cls'] = self.cls_weight * (counts * quality_focal_divergence(t, p)).sum() / total
        head = teacher.model.bbox_head
        distributions = isinstance(head, GFLHead)
        weight = (4.0 if distributions else 1.0) if self.reg_weight is None else self.reg_weight
        if not weight:
            return terms
        sure = t.amax(dim=-1).sigmoid() * (counts > 0)
        if distributions:
            rows = [flat(outputs[1], 4 * (head.reg_max + 1)) for outputs in (crossed, target)]
            divergence, total = edge_divergence(*rows, temperature=1.0), _mean_over_ranks(sure.sum(), 1e-6)
        else:
            divergence = _box_loss(head, target[1], crossed[1])
        terms['loss_reg'] = weight * (sure * divergence).sum() / total
        if isinstance(head, ATSSHead):
            rows = [flat(outputs[2], 1)[positive] for outputs in (crossed, target)]
            terms['loss_centerness'] = weight * bernoulli_kl_divergence(*rows).sum() / total
        return terms


def quality_focal_divergence(target: Tensor, prediction: Tensor, beta: float = 1.0) -> Tensor:
    r"""Quality focal loss with soft labels, one value per place.

    .. math:: \sum_k |p_k - q_k|^\beta \, BCE(p_k, q_k), \quad
              p = \sigma(target), \; q = \sigma(prediction)

    The loss of GFL (Li et al., NeurIPS 2020, equation 5) with the teacher's score for the quality, at every
    class; β = 1 in CrossKD. It is 0 where both agree. Computed in float32 at least.

    Args:
        target: Logits ``(M, K)`` of the probabilities that are imitated.
        prediction: Logits ``(M, K)`` of those that imitate.
        beta: β.

    Returns:
        Tensor: Shape ``(M,)``.
    """
    p, logits = at_least_float32(target).sigmoid(), at_least_float32(prediction)
    entropy = F.binary_cross_entropy_with_logits(logits, p, reduction='none')
    return ((p - logits.sigmoid()).abs()**beta * entropy).sum(dim=-1)


def align_statistics(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Give the student's features the mean and standard deviation of the teacher's, per channel.

    .. math:: (s - \mu_s) / (\sigma_s + \epsilon) \cdot \sigma_t + \mu_t

    Args:
        student: ``(N, C, H, W)``.
        teacher: ``(N, C, H, W)``.
        eps: ε.
    """
    s, t = at_least_float32(student), at_least_float32(teacher)
    # Both have as many places, so the correction of the standard deviations would cancel out.
    (std_s, mean_s), (std_t, mean_t) = (
        torch.std_mean(one, dim=(0, 2, 3), correction=0, keepdim=True) for one in (s, t))
    return ((s - mean_s) / (std_s + eps) * std_t + mean_t).to(student.dtype)


class _Given(nn.Module):
    """Gives features, a level a call, in place of what a tower's first convolutions would."""

    def __init__(self, levels: Sequence[Tensor]) -> None:
        super().__init__()
        self._levels = iter(levels)

    def forward(self, _: Tensor) -> Tensor:
        return next(self._levels)


def _continued(head: nn.Module, features: Mapping[str, Sequence[Tensor]], layer: int) -> nn.Module:
    """Return a head that shares a head's layers, and whose towers go on from some features."""
    rest = copy.copy(head)
    rest._modules = dict(head._modules)
    for tower, levels in features.items():
        setattr(rest, tower, nn.ModuleList([_Given(levels), *getattr(head, tower)[layer:]]))
    return rest


def _before_activation(conv: ConvModule, feature: Tensor) -> Tensor:
    # The student's batch norm has counted this batch before; it must not do so twice.
    buffers = {name: buffer.clone() for name, buffer in conv.named_buffers()}
    return functional_call(conv, buffers, (feature, ), dict(activate=False))


def _places(head: nn.Module, levels: Sequence[Tensor],
            data_samples: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """Return all places' weights, whether they are an object's, and the normalizer of the student's loss."""
    if isinstance(head, FCOSHead):
        sizes = [level.shape[-2:] for level in levels]
        points = head.prior_generator.grid_priors(sizes, device=levels[0].device)
        labels, distances = head.get_targets(points, [sample.gt_instances for sample in data_samples])
        positive = torch.cat(labels) < head.num_classes
        total = head.centerness_target(torch.cat(distances)[positive]).sum()
        return torch.ones_like(positive, dtype=total.dtype), positive, _mean_over_ranks(total, 1.0)
    _, labels, weights = assign(head, levels, data_samples)
    positive, weights = (torch.cat([level.flatten() for level in one]) for one in (labels, weights))
    positive = positive < head.num_classes
    return weights, positive, _mean_over_ranks(positive.sum().to(weights), 1.0)


def _mean_over_ranks(total: Tensor, least: float) -> Tensor:
    return reduce_mean(total).clamp(min=least)


def _box_loss(head: nn.Module, target: Sequence[Tensor], crossed: Sequence[Tensor]) -> Tensor:
    """Compare two predictions of a head as boxes, ``(M,)``."""
    sizes, images = [level.shape[-2:] for level in target], len(target[0])
    priors = head.prior_generator.grid_priors(sizes, device=target[0].device)
    priors = torch.cat([level.repeat(images, 1) for level in priors])
    t, p = (head.bbox_coder.decode(priors, at_least_float32(flat(one, 4))) for one in (target, crossed))
    if isinstance(head, FCOSHead):
        return -bbox_overlaps(p, t, is_aligned=True).clamp(min=1e-6).log()
    return 1 - bbox_overlaps(p, t, mode='giou', is_aligned=True)


def _spot(tower: str, layer: int) -> str:
    return f'bbox_head.{tower}.{layer - 1}:input'


def _channels(model: nn.Module, layer: int, role: str) -> list[int]:
    """Return the width of a head's two towers behind the ``layer``-th convolution."""
    head = getattr(model, 'bbox_head', None)
    known = (AnchorHead.get_targets, ATSSHead.get_targets, GFLHead.get_targets, FCOSHead.get_targets)
    towers = [getattr(head, tower, ()) for tower in TOWERS]
    convs = [conv for tower in towers for conv in tower]
    if getattr(type(head), 'get_targets', None) not in known or not convs or not all(
            isinstance(conv, ConvModule) for conv in convs):
        kind = type(head or getattr(model, 'roi_head', None) or model).__name__
        raise MMKDError('CrossKD crosses heads with towers `cls_convs` and `reg_convs`, such as those of '
                        f'RetinaNet, ATSS, FCOS and GFL; the {role} has a {kind}.')
    depth = min(len(tower) for tower in towers)
    if not 1 <= layer <= depth:
        raise MMKDError(f"CrossKD's `layer` must lie between 1 and {depth}, the depth of the towers of the "
                        f'{role}, not be {layer}.')
    return [tower[layer - 1].out_channels for tower in towers]
