"""Distance of boxes, and the boxes that a dense head predicts, decoded as for its detections."""
from collections.abc import Sequence

import torch
from mmdet.models import CenterNetUpdateHead, FCOSHead, GFLHead, PAAHead, TOODHead, VFNetHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from torch import Tensor, nn

from ...errors import MMKDError
from ..losses import at_least_float32
from .dense_targets import flat

_DECODED_BY_CODER = (BaseDenseHead._predict_by_feat_single, PAAHead._predict_by_feat_single)
"""How heads predict whose boxes the box coder decodes from their second output."""

_DIVIDED_BY_STRIDE_IN_TRAINING = (FCOSHead.forward_single, CenterNetUpdateHead.forward_single)

_QUALITY_LAYERS = ('conv_centerness', 'atss_centerness', 'atss_iou')
"""Layers that predict the quality of boxes, the third output: FCOS and AutoAssign; ATSS and PAA; DDOD."""


def giou_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - GIoU of pairs of boxes, from 0 to 2 (Rezatofighi et al., CVPR 2019).

    Some heads can predict boxes whose left edge is on the right of the right one, of which the GIoU has no
    bound; such edges are swapped here.

    Args:
        student: ``(M, 4)`` as x1, y1, x2, y2.
        teacher: ``(M, 4)``.

    Returns:
        Tensor: Shape ``(M,)``, in float32 at least.
    """
    return 1 - bbox_overlaps(_ordered(student), _ordered(teacher), 'giou', is_aligned=True)


def _ordered(boxes: Tensor) -> Tensor:
    first, second = at_least_float32(boxes).split(2, dim=-1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)


def require_boxes(model: nn.Module, method: str, role: str) -> nn.Module:
    """Return the head of a dense detector whose boxes can be decoded.

    Args:
        model: The detector.
        method: The name of the method, for the message.
        role: What the network is called in the message, such as ``'student'``.

    Raises:
        MMKDError: If it has no such head.
    """
    head = getattr(model, 'bbox_head', None)
    if isinstance(head, (GFLHead, TOODHead, YOLOXHead)) or (
            getattr(type(head), '_predict_by_feat_single', None) in _DECODED_BY_CODER
            and hasattr(head, 'bbox_coder')):
        return head
    kind = type(head or getattr(model, 'roi_head', None) or model).__name__
    raise MMKDError(
        f'{method} compares the boxes of dense heads, such as those of RetinaNet, FCOS, ATSS, GFL, TOOD, '
        f'RTMDet and YOLOX; the {role} has a {kind}. For two-stage detectors, use BoxDistill; for others, '
        'distill features, for instance with PKD.')


def has_quality(head: nn.Module) -> bool:
    """Return whether a head predicts the quality of its boxes: a centerness or an IoU."""
    return any(hasattr(head, layer) for layer in _QUALITY_LAYERS)


def decoded_boxes(head: nn.Module, outputs: Sequence) -> Tensor:
    """Return all boxes in the outputs of a dense head.

    Boxes are not clipped to the image.

    Args:
        head: A head that :func:`require_boxes` accepts.
        outputs: What the head returned, in training mode or not, as the head is now.

    Returns:
        Tensor: ``(M, 4)`` as x1, y1, x2, y2 in pixels of the batch, in the order of the logits (level, image,
        row, column, anchor), in float32 at least.
    """
    levels = outputs[2] if isinstance(head, VFNetHead) and head.training else outputs[1]
    num_images = len(levels[0])
    sizes = [level.shape[-2:] for level in levels]
    priors = head.prior_generator.grid_priors(sizes, device=levels[0].device)
    boxes = []
    for level, level_priors, stride in zip(levels, priors, head.prior_generator.strides, strict=True):
        width = stride[0] if isinstance(stride, (tuple, list)) else stride
        level_priors = level_priors.repeat(num_images, 1)
        boxes.append(_decoded_level(head, at_least_float32(level), level_priors, width))
    return torch.cat(boxes)


def _decoded_level(head: nn.Module, level: Tensor, priors: Tensor, stride: int) -> Tensor:
    if isinstance(head, GFLHead):
        distances = head.integral(flat([level], 4 * (head.reg_max + 1))) * stride
        return get_box_tensor(head.bbox_coder.decode(head.anchor_center(priors), distances))
    predictions = flat([level], 4)
    if isinstance(head, TOODHead):
        return predictions * stride
    if isinstance(head, YOLOXHead):
        return head._bbox_decode(torch.cat([priors, torch.full_like(priors, stride)], dim=1), predictions)
    if head.training and _divides_by_stride(head):
        predictions = predictions * stride
    return get_box_tensor(head.bbox_coder.decode(priors, predictions))


def _divides_by_stride(head: nn.Module) -> bool:
    """Return whether a head's distances are in units of the stride in training, but in pixels otherwise."""
    return type(head).forward_single in _DIVIDED_BY_STRIDE_IN_TRAINING and getattr(head, 'norm_on_bbox', True)
