"""How dense heads assign their locations to objects, which several methods need to know."""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.models.utils import unpack_gt_instances
from torch import Tensor, nn

from ..reduction import mean_over_ranks


class Locations(NamedTuple):
    """How the student's loss treats the M locations (or priors) of a batch.

    Args:
        weights: The weights of the locations in its classification loss, ``(M,)``.
        positive: Which locations are assigned to objects, ``(M,)``, bool.
        normalizer: The divisor of the losses, averaged over ranks; a scalar.
    """
    weights: Tensor
    positive: Tensor
    normalizer: Tensor


def has_known_targets(head: nn.Module | None) -> bool:
    """Return whether :func:`locations` knows the targets of a head, which its predictions do not change."""
    return any(
        isinstance(head, known) and type(head).get_targets is known.get_targets
        and type(head)._get_targets_single is known._get_targets_single
        for known in (AnchorHead, ATSSHead, GFLHead, FCOSHead))


def locations(head: nn.Module, levels: Sequence[Tensor], data_samples: Sequence) -> Locations:
    """Return how the loss of a head treats all locations.

    Args:
        head: A head for which :func:`has_known_targets` holds.
        levels: Maps ``(N, C, H_l, W_l)``; only their sizes matter.
        data_samples: The samples of the batch.
    """
    if isinstance(head, FCOSHead):
        sizes = [level.shape[-2:] for level in levels]
        points = head.prior_generator.grid_priors(sizes, device=levels[0].device)
        labels, distances = head.get_targets(points, [sample.gt_instances for sample in data_samples])
        positive = torch.cat(labels) < head.num_classes
        total = head.centerness_target(torch.cat(distances)[positive]).sum()
        weights = torch.ones_like(positive, dtype=total.dtype)
        return Locations(weights, positive, mean_over_ranks(total, minimum=1.0))
    _, labels, label_weights = assign(head, levels, data_samples)
    weights = torch.cat([level.flatten() for level in label_weights])
    positive = torch.cat([level.flatten() for level in labels]) < head.num_classes
    return Locations(weights, positive, mean_over_ranks(positive.sum().to(weights), minimum=1.0))


def assign(head: nn.Module, levels: Sequence[Tensor],
           data_samples: Sequence) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return which priors an anchor head (RetinaNet, ATSS, GFL) assigns to which class.

    Args:
        head: The head.
        levels: Maps ``(N, C, H_l, W_l)``; only their sizes matter.
        data_samples: The samples of the batch.

    Returns:
        tuple: For every level the priors ``(A_l, 4)``, the labels ``(N, A_l)`` (the number of classes for
        background), and the weights of the priors in the head's classification loss ``(N, A_l)``: 0 in the
        padding and where the assigner ignores a prior.
    """
    gt_instances, gt_ignored, metas = unpack_gt_instances(data_samples)
    sizes = [level.shape[-2:] for level in levels]
    anchors, valid = head.get_anchors(sizes, metas, device=levels[0].device)
    priors = list(anchors[0])  # here, because some heads replace the entries of `anchors`
    targets = head.get_targets(anchors, valid, gt_instances, metas, batch_gt_instances_ignore=gt_ignored)
    # Some heads return the anchors (N, A_l, 4) first.
    labels, weights = targets[1:3] if targets[0][0].dim() == 3 else targets[:2]
    return priors, labels, weights


def flat(levels: Sequence[Tensor], channels: int) -> Tensor:
    """Return maps ``(N, A*channels, H_l, W_l)`` as rows ``(M, channels)``, in the order of the logits."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels])
