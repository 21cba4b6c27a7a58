"""LD: Localization Distillation for Dense Object Detection (Zheng et al., CVPR 2022)."""
from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.models.task_modules import ATSSAssigner, MaxIoUAssigner
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ...errors import MMKDError, check_weight
from ...registry import MODELS
from ..losses import kl_divergence
from ..losses.distribution import edge_divergence
from ..spots import logit_layout
from ..step import Step
from .base import Method


@MODELS.register_module()
class LD(Method):
    r"""The edges of the student's boxes, as distributions, imitate the teacher's.

    .. math::
        L &= λ_{main} \sum_{i \in main} s_i D_i + \frac{λ_{vlr}}{4} \sum_{i \in VLR} o_i D_i, \quad
        D_i = \frac{1}{n+1} \, mean_e \, τ^2 KL(T_{i,e} ‖ S_{i,e})

    The *main* region are the places that the student's assigner holds for objects, weighted by the student's
    best class score s there. The *valuable localization region* (VLR, algorithm 1 of the paper) are the
    places around it: those whose prior has, with an object's box, a DIoU in [γα, α), where α is the IoU from
    which on the assigner takes a prior for this object; they are weighted by the prior's IoU o with the box.

    The sums, the division by the n+1 bins and the 4 under λ_vlr are those of the released code (and, for the
    main region, of MMDetection's ``LDHead``); the published weights belong to them. So the loss grows with
    the images and objects in the batch of a process.

    Args:
        weight: λ_main.
        vlr_weight: λ_vlr; with 0, the region is left out.
        temperature: τ.
        gamma: γ.
        normalize: Whether both sums are divided by their weights' totals, averaged over ranks, so that they
            do not depend on the number of objects. Typical totals are in the tens to hundreds: raise the
            weights accordingly.
        kd_weight: Weight of KL(T‖S) of the classes' logits in the main region: the mean over places and
            classes, as in the released code, which has 10 for R50. With 0, classes are left to other methods,
            such as KD.
        kd_temperature: τ of the classes' logits.
    """

    def __init__(self,
                 weight: float = 0.25,
                 vlr_weight: float = 0.25,
                 temperature: float = 10.0,
                 gamma: float = 0.25,
                 normalize: bool = False,
                 kd_weight: float = 0.0,
                 kd_temperature: float = 2.0) -> None:
        super().__init__()
        if min(temperature, kd_temperature) <= 0:
            raise MMKDError(f'The temperatures must be above 0, not {temperature} and {kd_temperature}.')
        for name, value in (('weight', weight), ('vlr_weight', vlr_weight), ('kd_weight', kd_weight)):
            check_weight(value, name)
        self.weight = weight
        self.vlr_weight = vlr_weight
        self.temperature = temperature
        self.gamma = gamma
        self.normalize = normalize
        self.kd_weight = kd_weight
        self.kd_temperature = kd_temperature
        self.student_spots = self.teacher_spots = ('cls_outputs', )

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        if not teachers:
            raise MMKDError('LD learns from a teacher: give `teacher` a config and a checkpoint.')
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

    def forward(self, step: Step) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Returns:
            dict: ``loss_main``, ``loss_vlr`` and ``loss_kd``, as far as they have a weight; means over
            teachers.
        """
        (own, ) = step.student_outputs['cls_outputs']
        taught = [seen['cls_outputs'][0] for seen in step.teacher_outputs]
        head = step.student.bbox_head
        priors, labels, counts = assign(head, own[0], step.data_samples)
        main = torch.cat([level.flatten() for level in labels]) < head.num_classes
        terms = {}
        if self.weight:
            scores = self.layout.logits([own])[0].detach().sigmoid().amax(dim=-1)
            terms['loss_main'] = self.weight * self._divergence(own, taught, main, scores)
        if self.vlr_weight:
            overlaps = self._valuable(head.assigner, priors, counts, step.data_samples)
            terms['loss_vlr'] = self.vlr_weight / 4 * self._divergence(own, taught, overlaps > 0, overlaps)
        if self.kd_weight:
            terms['loss_kd'] = self.kd_weight * self._classes(own, taught, main)
        return terms

    def _divergence(self, own: Sequence, taught: list, region: Tensor, weights: Tensor) -> Tensor:
        s, *t = [flat(outputs[1], outputs[1][0].shape[1])[region] for outputs in (own, *taught)]
        weights, bins = weights[region], s.shape[1] / 4
        total = sum((weights * edge_divergence(s, one, self.temperature)).sum() for one in t)
        total = total / (len(t) * bins)
        return total / reduce_mean(weights.sum()).clamp(min=1e-6) if self.normalize else total

    def _classes(self, own: Sequence, taught: list, main: Tensor) -> Tensor:
        s, *t = [self.layout.logits([outputs])[0][main] for outputs in (own, *taught)]
        total = sum(kl_divergence(s, one, self.kd_temperature).sum() for one in t) / (len(t) * s.shape[1])
        return total / reduce_mean(main.sum().to(total)).clamp(min=1)

    @torch.no_grad()
    def _valuable(self, assigner, priors: list[Tensor], counts: list[Tensor], samples: Sequence) -> Tensor:
        """IoU of all places' priors with an object whose VLR they belong to, else 0."""
        images = []
        for index, sample in enumerate(samples):
            valid = [level[index] > 0 for level in counts]
            inside = [level[ok] for level, ok in zip(priors, valid, strict=True)]
            boxes = sample.gt_instances.bboxes
            region = priors[0].new_zeros(sum(len(level) for level in priors))
            if len(boxes):
                if isinstance(assigner, ATSSAssigner):
                    threshold = atss_threshold(inside, boxes, assigner.topk)
                else:
                    threshold = boxes.new_full((len(boxes), ), assigner.pos_iou_thr)
                region[torch.cat(valid)] = valuable_region(torch.cat(inside), boxes, threshold, self.gamma)
            images.append(region.split([len(level) for level in priors]))
        return torch.cat([level for levels in zip(*images, strict=True) for level in levels])


def valuable_region(priors: Tensor, boxes: Tensor, threshold: Tensor, gamma: float = 0.25) -> Tensor:
    """Return the priors' weights in the valuable localization region: IoU with a box they surround, or 0.

    Args:
        priors: ``(A, 4)`` as x1, y1, x2, y2.
        boxes: ``(G, 4)`` of the objects, one at least.
        threshold: α of every object ``(G,)``.
        gamma: γ: an object's region are the priors with a DIoU in [γα, α).

    Returns:
        Tensor: Shape ``(A,)``; the largest IoU where regions of objects overlap.
    """
    overlaps = bbox_overlaps(priors, boxes)
    diou = overlaps - _center_distance(priors, boxes) / _enclosing_diagonal(priors, boxes)
    region = (diou >= gamma * threshold) & (diou < threshold)
    return torch.where(region, overlaps, 0.0).amax(dim=1)


def atss_threshold(priors: Sequence[Tensor], boxes: Tensor, topk: int) -> Tensor:
    """Return the IoU from which on ATSS takes a prior for an object, ``(G,)``.

    It is the mean plus the standard deviation of the IoU of the ``topk`` priors per level that are closest
    to the object (Zhang et al., CVPR 2020, algorithm 1).

    Args:
        priors: ``(A_l, 4)`` for every level.
        boxes: ``(G, 4)`` of the objects.
        topk: How many per level.
    """
    candidates = []
    for level in priors:
        closest = _center_distance(level, boxes).topk(min(topk, len(level)), dim=0, largest=False).indices
        candidates.append(bbox_overlaps(level, boxes).gather(0, closest))
    candidates = torch.cat(candidates)
    return candidates.mean(dim=0) + candidates.std(dim=0)


@torch.no_grad()
def assign(head: nn.Module, levels: Sequence[Tensor],
           data_samples: Sequence) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Ask an anchor head (RetinaNet, ATSS, GFL) which object it assigns to which prior.

    Args:
        head: The head.
        levels: Maps ``(N, C, H_l, W_l)``, of which only the sizes count.
        data_samples: The samples of the batch.

    Returns:
        tuple: For every level the priors ``(A_l, 4)``, the labels ``(N, A_l)`` (the number of classes for
        background), and the weights of places in the head's classification loss ``(N, A_l)``: 0 in the
        padding and where the assigner leaves a prior out.
    """
    gt_instances, gt_ignored, metas = unpack_gt_instances(data_samples)
    sizes = [level.shape[-2:] for level in levels]
    anchors, valid = head.get_anchors(sizes, metas, device=levels[0].device)
    priors = list(anchors[0])
    targets = head.get_targets(anchors, valid, gt_instances, metas, batch_gt_instances_ignore=gt_ignored)
    # Some heads return the anchors (N, A_l, 4) in front.
    labels, weights = targets[1:3] if targets[0][0].dim() == 3 else targets[:2]
    return priors, labels, weights


def flat(levels: Sequence[Tensor], channels: int) -> Tensor:
    """Return maps ``(N, A*channels, H_l, W_l)`` as rows ``(M, channels)``, ordered as logits are."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels])


def _distribution_head(model: nn.Module, role: str) -> GFLHead:
    head = getattr(model, 'bbox_head', None)
    if not isinstance(head, GFLHead) or type(head).get_targets is not GFLHead.get_targets:
        kind = type(head or getattr(model, 'roi_head', None) or model).__name__
        raise MMKDError('LD compares the distributions of box edges, which a GFLHead predicts; '
                        f'the {role} has a {kind}.')
    return head


def _center_distance(priors: Tensor, boxes: Tensor) -> Tensor:
    centers = [(one[:, :2] + one[:, 2:]) / 2 for one in (priors, boxes)]
    return (centers[0][:, None] - centers[1]).square().sum(dim=-1)


def _enclosing_diagonal(priors: Tensor, boxes: Tensor) -> Tensor:
    start = torch.minimum(priors[:, None, :2], boxes[:, :2])
    end = torch.maximum(priors[:, None, 2:], boxes[:, 2:])
    return (end - start).square().sum(dim=-1).clamp(min=1e-6)
