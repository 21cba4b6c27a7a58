"""RKD: Relational Knowledge Distillation (Park et al., CVPR 2019)."""
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from ...settings import NonNegativeFloat
from .base import RelationalFeatureLoss
from .tensors import at_least_float32


def differences(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Differences ``x_i - x_j`` of samples at ``[j, i]``, and their lengths.

    They are not computed from inner products, which would cancel for samples that are close.

    Args:
        feature: Features ``(N, C, H, W)`` or ``(N, C)``, which are flattened per sample.

    Returns:
        tuple[Tensor, Tensor]: Shapes ``(N, N, CHW)`` and ``(N, N)``, in float32 at least.
    """
    rows = at_least_float32(feature).flatten(1)
    difference = rows[None] - rows[:, None]
    return difference, torch.linalg.vector_norm(difference, dim=2)


def relative_distances(distance: Tensor, eps: float = 1e-12) -> Tensor:
    """Distances divided by their mean μ over pairs of different samples, ψ_D of the paper.

    Args:
        distance: Distances ``(N, N)``.
        eps: Lower bound of μ.

    Returns:
        Tensor: Shape ``(N, N)``.
    """
    n = len(distance)
    mean = distance.sum() / max(n * (n - 1), 1)
    return distance / mean.clamp(min=eps)


def cosines(difference: Tensor, distance: Tensor, eps: float = 1e-12) -> Tensor:
    """Cosines of the angles at sample j between samples i and k, ψ_A of the paper.

    Args:
        difference: Differences ``(N, N, C)`` from :func:`differences`.
        distance: Lengths of the differences ``(N, N)``.
        eps: A difference that is shorter has no direction: its cosines are 0, without gradient.

    Returns:
        Tensor: Shape ``(N, N, N)``, the cosine at ``[j, i, k]``.
    """
    direction = difference / distance.masked_fill(distance < eps, math.inf)[..., None]
    with torch.autocast(direction.device.type, enabled=False):
        return direction @ direction.transpose(1, 2)


@MODELS.register_module()
class RKDLoss(RelationalFeatureLoss):
    r"""Preserves the distances between pairs of samples and the angles of triplets.

    .. math:: \lambda_D \, \mathrm{mean}_{ij} \, l(\psi_D(s_i, s_j), \psi_D(t_i, t_j)) +
              \lambda_A \, \mathrm{mean}_{ijk} \, l(\psi_A(s_i, s_j, s_k), \psi_A(t_i, t_j, t_k))

    with l the Huber loss (δ = 1), :func:`relative_distances` and :func:`cosines`. As in the released code,
    the means include pairs and triplets that contain a sample twice. It is meant for pooled features, because
    it needs memory for ``(N, N, CHW)`` numbers.

    Args:
        weight: Weight of both terms.
        distance_weight: λ_D.
        angle_weight: λ_A.
        gather: Whether samples of all processes are related to one another, not only those of each process.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, distance_weight: NonNegativeFloat = 25.0,
                 angle_weight: NonNegativeFloat = 50.0, gather: bool = False) -> None:
        super().__init__(weight, gather)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        s_difference, s_distance = differences(student)
        t_difference, t_distance = differences(teacher)
        distance = F.smooth_l1_loss(relative_distances(s_distance), relative_distances(t_distance))
        angle = F.smooth_l1_loss(cosines(s_difference, s_distance), cosines(t_difference, t_distance))
        return self.distance_weight * distance + self.angle_weight * angle
