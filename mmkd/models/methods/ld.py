"""LD: Localization Distillation for Dense Object Detection (Zheng et al., CVPR 2022)."""
from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.models.task_modules import ATSSAssigner, MaxIoUAssigner
from mmdet.structures.bbox import bbox_overlaps
from mmengine.model import ModuleList
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import Fraction, NonNegativeFloat, Temperature
from ..losses import at_least_float32, kl_divergence
from ..losses.distribution import edge_divergence
from ..reduction import mean_over_ranks
from ..spots import logit_layout, probe, resolve_spot
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers
from .dense_targets import assign, flat


@MODELS.register_module()
class LD(Method):
    r"""The distributions of the edges of the student's boxes imitate the teacher's.

    .. math::
        L &= λ_{main} \sum_{i \in main} s_i D_i + \frac{λ_{vlr}}{4} \sum_{i \in VLR} o_i D_i, \quad
        D_i = \frac{1}{n+1} \, mean_e \, τ^2 KL(T_{i,e} ‖ S_{i,e})

    The *main* region contains the locations that the student's assigner gives to objects, weighted by the
    student's best class score s there. The *valuable localization region* (VLR, algorithm 1 of the paper)
    contains the locations around it: those whose prior and the box of an object have a DIoU in [γα, α), where
    α is the IoU from which on the assigner gives a prior to this object. They are weighted by the IoU o of
    the prior and the box.

    The sums, the division by the n+1 bins and the 4 under λ_vlr are those of the released code (and, for the
    main region, of MMDetection's ``LDHead``); the published weights belong to them. The loss therefore grows
    with the number of images and objects in the batch of a process.

    The released code also distills classes in the main region, and, for R50 on COCO, the features of the neck
    at the locations around objects (those of FGFI, Wang et al., CVPR 2019): where the prior's IoU with an
    object is more than half of that object's largest.

    Args:
        weight: The weight λ_main.
        vlr_weight: The weight λ_vlr; with 0, the region is left out.
        temperature: The temperature τ.
        gamma: The factor γ.
        normalize: Whether both sums are divided by the total of their weights, averaged over ranks, so that
            they do not depend on the number of objects. Typical totals are in the tens to hundreds, so the
            weights must be raised accordingly.
        kd_weight: The weight of KL(T‖S) of the class logits in the main region: the mean over locations and
            classes. With 0, classes are left to other methods, such as KD.
        kd_temperature: The temperature τ of the class logits.
        feature_weight: The weight of the mean squared error of features around objects, summed over levels; 2
            in the released config for R50, 0 in all others. If the networks have other numbers of channels, a
            1×1 convolution changes the student's.
    """

    takes_choices = True

    def __init__(self, weight: NonNegativeFloat = 0.25, vlr_weight: NonNegativeFloat = 0.25,
                 temperature: Temperature = 10.0, gamma: Fraction = 0.25, normalize: bool = False,
                 kd_weight: NonNegativeFloat = 10.0, kd_temperature: Temperature = 2.0,
                 feature_weight: NonNegativeFloat = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.vlr_weight = vlr_weight
        self.temperature = temperature
        self.gamma = gamma
        self.normalize = normalize
        self.kd_weight = kd_weight
        self.kd_temperature = kd_temperature
        self.feature_weight = feature_weight
        self.student_spots = self.teacher_spots = ('cls_outputs', )
        used = dict(logits=kd_weight > 0, boxes=weight > 0 or vlr_weight > 0)
        self.output_spots = tuple(name for name in used if used[name])
        self.connectors = ModuleList()

    @property
    def per_image_obstacle(self) -> str | None:
        return 'its loss of features has no choice (set feature_weight=0)' if self.feature_weight else None

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        check_teachers('LD', teachers)
        head = _distribution_head(student, 'student')
        self.layout = logit_layout(student, 'student')
        assigner = getattr(head, 'assigner', None)
        if self.vlr_weight and not isinstance(assigner, (ATSSAssigner, MaxIoUAssigner)):
            raise MMKDError("LD's valuable localization region takes the IoU threshold of an ATSSAssigner or "
                            f"MaxIoUAssigner, and the student's is a {type(assigner).__name__}; give "
                            'vlr_weight=0.')
        for teacher in teachers:
            reg_max = _distribution_head(teacher.model, 'teacher').reg_max
            if reg_max != head.reg_max:
                raise MMKDError(f'The box distributions cannot be compared: reg_max is {head.reg_max} in the '
                                f'student and {reg_max} in the teacher.')
            teacher.require_logits(self.layout)
        if self.feature_weight:
            self.student_spots = self.teacher_spots = ('cls_outputs', 'neck')
            for teacher in teachers:
                teacher.require_same_size()
            self.connectors.extend(_connectors(student, teacher.model) for teacher in teachers)

    def forward(self, step: Step, choices: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the losses of both regions, of the class logits and of the features.

        Args:
            step: The outputs that were recorded in the training step.
            choices: For each of :attr:`output_spots`, which images to distill, ``(N,)``; by default all of
                them. Divisors remain those of all images.

        Returns:
            dict: ``loss_main``, ``loss_vlr``, ``loss_kd`` and ``loss_feature``, as far as their weights are
            above 0; means over teachers.
        """
        (student, ) = step.student_outputs['cls_outputs']
        teachers = [outputs['cls_outputs'][0] for outputs in step.teacher_outputs]
        head = step.student.bbox_head
        priors, labels, label_weights = assign(head, student[0], step.data_samples)
        main = torch.cat([level.flatten() for level in labels]) < head.num_classes
        chosen = {} if choices is None else dict(zip(
            self.output_spots, [self.layout.per_row(choice, step)[0] for choice in choices], strict=True))
        of_boxes, of_logits = chosen.get('boxes'), chosen.get('logits')
        losses = {}
        if self.weight:
            scores = self.layout.logits([student])[0].detach().sigmoid().amax(dim=-1)
            losses['loss_main'] = self.weight * self._edge_loss(
                student, teachers, main, scores, of_boxes)
        if self.vlr_weight:
            overlaps = self._valuable_overlaps(head.assigner, priors, label_weights, step.data_samples)
            edge_loss = self._edge_loss(student, teachers, overlaps > 0, overlaps, of_boxes)
            losses['loss_vlr'] = self.vlr_weight / 4 * edge_loss
        if self.kd_weight:
            losses['loss_kd'] = self.kd_weight * self._class_loss(student, teachers, main, of_logits)
        if self.feature_weight:
            losses['loss_feature'] = self.feature_weight * self._feature_loss(step, priors, label_weights)
        return losses

    def _edge_loss(self, student: Sequence, teachers: Sequence[Sequence], region: Tensor,
                   weights: Tensor, chosen: Tensor | None) -> Tensor:
        """Compare the edge distributions of head outputs at the locations of a region."""
        student_edges, *teacher_edges = [
            flat(outputs[1], outputs[1][0].shape[1])[region] for outputs in (student, *teachers)]
        weights = weights[region]
        factors = weights if chosen is None else weights * chosen[region]
        num_bins = student_edges.shape[1] / 4
        total = sum((factors * edge_divergence(student_edges, edges, self.temperature)).sum()
                    for edges in teacher_edges)
        total = total / (len(teacher_edges) * num_bins)
        return total / mean_over_ranks(weights.sum()) if self.normalize else total

    def _class_loss(self, student: Sequence, teachers: Sequence[Sequence], main: Tensor,
                    chosen: Tensor | None) -> Tensor:
        """Compare the class logits of head outputs at the locations of the main region."""
        student_logits, *teacher_logits = [
            self.layout.logits([outputs])[0][main] for outputs in (student, *teachers)]
        factors = 1.0 if chosen is None else chosen[main]
        total = sum((factors * kl_divergence(student_logits, logits, self.kd_temperature)).sum()
                    for logits in teacher_logits)
        total = total / (len(teacher_logits) * student_logits.shape[1])
        return total / mean_over_ranks(main.sum().to(total), minimum=1)

    def _feature_loss(self, step: Step, priors: list[Tensor], label_weights: list[Tensor]) -> Tensor:
        """Compare the features of the neck around objects: means over locations, summed over levels."""
        regions = [torch.stack(images) for images in zip(*(
            region_around_objects(
                priors, [level[index] > 0 for level in label_weights], sample.gt_instances.bboxes)
            for index, sample in enumerate(step.data_samples)), strict=True)]
        total = 0.0
        (student, ) = step.student_outputs['neck']
        for connectors, outputs in zip(self.connectors, step.teacher_outputs, strict=True):
            (teacher, ) = outputs['neck']
            for connector, s, t, region in zip(connectors, student, teacher, regions, strict=True):
                weights = region.view(len(s), 1, *s.shape[-2:])
                error = (at_least_float32(connector(s)) - at_least_float32(t)).square() * weights
                count = mean_over_ranks(weights.sum().to(error), minimum=1)
                total = total + error.sum() / (t.shape[1] * count)
        return total / len(step.teacher_outputs)

    @torch.no_grad()
    def _valuable_overlaps(self, assigner: ATSSAssigner | MaxIoUAssigner, priors: list[Tensor],
                           label_weights: list[Tensor], samples: Sequence) -> Tensor:
        """Return the IoU of all priors with an object whose VLR contains them, otherwise 0."""
        images = []
        for index, sample in enumerate(samples):
            valid = [level[index] > 0 for level in label_weights]
            valid_priors = [level[is_valid] for level, is_valid in zip(priors, valid, strict=True)]
            boxes = sample.gt_instances.bboxes
            region = priors[0].new_zeros(sum(len(level) for level in priors))
            if len(boxes):
                if isinstance(assigner, ATSSAssigner):
                    threshold = atss_threshold(valid_priors, boxes, assigner.topk)
                else:
                    threshold = boxes.new_full((len(boxes), ), assigner.pos_iou_thr)
                region[torch.cat(valid)] = valuable_region(
                    torch.cat(valid_priors), boxes, threshold, self.gamma)
            images.append(region.split([len(level) for level in priors]))
        return torch.cat([level for levels in zip(*images, strict=True) for level in levels])


def valuable_region(priors: Tensor, boxes: Tensor, threshold: Tensor, gamma: float = 0.25) -> Tensor:
    """Return the weights of priors in the valuable localization region: the IoU with an object, or 0.

    Args:
        priors: ``(A, 4)`` as x1, y1, x2, y2.
        boxes: ``(G, 4)`` of the objects, at least one.
        threshold: The threshold α of every object, ``(G,)``.
        gamma: The factor γ: the region of an object contains the priors with a DIoU in [γα, α).

    Returns:
        Tensor: Shape ``(A,)``; the largest IoU where the regions of several objects overlap.
    """
    overlaps = bbox_overlaps(priors, boxes)
    diou = overlaps - _center_distance(priors, boxes) / _enclosing_diagonal(priors, boxes)
    region = (diou >= gamma * threshold) & (diou < threshold)
    return torch.where(region, overlaps, 0.0).amax(dim=1)


def region_around_objects(priors: Sequence[Tensor], valid: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
    """Return where the IoU of a prior with an object is more than half of the object's largest IoU.

    Args:
        priors: ``(A_l, 4)`` for every level, as x1, y1, x2, y2.
        valid: For every level, which priors are inside the image, ``(A_l,)``.
        boxes: ``(G, 4)`` of the objects.

    Returns:
        list[Tensor]: For every level a boolean tensor ``(A_l,)``.
    """
    if not len(boxes):
        return [torch.zeros_like(level) for level in valid]
    overlaps = bbox_overlaps(torch.cat(list(priors)), boxes) * torch.cat(list(valid))[:, None]
    region = (overlaps > overlaps.amax(dim=0) / 2).any(dim=1)
    return list(region.split([len(level) for level in valid]))


def atss_threshold(priors: Sequence[Tensor], boxes: Tensor, topk: int) -> Tensor:
    """Return the IoU from which on ATSS assigns a prior to an object, ``(G,)``.

    It is the mean plus the standard deviation of the IoU of the ``topk`` priors per level that are closest
    to the object (Zhang et al., CVPR 2020, algorithm 1).

    Args:
        priors: ``(A_l, 4)`` for every level.
        boxes: ``(G, 4)`` of the objects.
        topk: The number of priors per level.
    """
    overlaps = []
    for level in priors:
        closest = _center_distance(level, boxes).topk(min(topk, len(level)), dim=0, largest=False).indices
        overlaps.append(bbox_overlaps(level, boxes).gather(0, closest))
    candidates = torch.cat(overlaps)
    return candidates.mean(dim=0) + candidates.std(dim=0)


@torch.no_grad()
def _distribution_head(model: nn.Module, role: str) -> GFLHead:
    head = getattr(model, 'bbox_head', None)
    if not isinstance(head, GFLHead) or type(head).get_targets is not GFLHead.get_targets:
        kind = type(head or getattr(model, 'roi_head', None) or model).__name__
        raise MMKDError('LD compares the distributions of box edges, which a GFLHead predicts; '
                        f'the {role} has a {kind}. For the boxes of other dense heads, use BCKD.')
    return head


def _connectors(student: nn.Module, teacher: nn.Module) -> ModuleList:
    """Return what gives every level of the student's neck the teacher's number of channels."""
    channels = []
    for model, role in ((student, 'student'), (teacher, 'teacher')):
        (levels, ) = probe(model, dict(neck=resolve_spot(model, 'neck', role)))['neck']
        channels.append([level.shape[1] for level in levels])
    return ModuleList(nn.Identity() if s == t else nn.Conv2d(s, t, 1)
                      for s, t in zip(*channels, strict=True))


def _center_distance(priors: Tensor, boxes: Tensor) -> Tensor:
    """Return the squared distances of all centers, ``(A, G)``."""
    prior_centers = (priors[:, :2] + priors[:, 2:]) / 2
    box_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (prior_centers[:, None] - box_centers).square().sum(dim=-1)


def _enclosing_diagonal(priors: Tensor, boxes: Tensor) -> Tensor:
    """Return the squared diagonals of the smallest boxes that enclose a prior and an object, ``(A, G)``."""
    top_left = torch.minimum(priors[:, None, :2], boxes[:, :2])
    bottom_right = torch.maximum(priors[:, None, 2:], boxes[:, 2:])
    return (bottom_right - top_left).square().sum(dim=-1).clamp(min=1e-6)
