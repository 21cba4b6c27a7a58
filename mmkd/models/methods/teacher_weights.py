"""How several teachers are weighted."""
from collections.abc import Sequence
from typing import Literal

import torch
from mmengine.dist import all_reduce
from torch import Tensor

TeacherWeights = Literal['equal', 'adaptive']
"""Ways to weight several teachers: alike, or by :func:`adaptive_weights`."""


def adaptive_weights(gradients: Sequence[Tensor], tolerance: float = 1.0) -> Tensor:
    r"""Weights with which the teachers' gradients conflict least (AEKD, Du et al., NeurIPS 2020).

    .. math:: \min_w \| \sum_m w_m g_m \|^2, \quad 0 ≤ w_m ≤ C, \; \sum_m w_m = 1

    The bound C keeps the teacher that is nearest to the student, and so teaches the least, from having all
    the weight.

    Args:
        gradients: For each of the M teachers, the gradient g of its loss with respect to the student's
            logits, averaged over the batch of this rank; vectors of the same length.
        tolerance: The bound C, at least 1/M; 0.6 in the released code.

    Returns:
        Tensor: Shape ``(M,)``, without gradient; the same on all ranks.
    """
    with torch.no_grad():
        means = torch.stack(list(gradients)).float()
        all_reduce(means, op='mean')
        return minimum_norm_weights(means @ means.T, tolerance)


def minimum_norm_weights(gram: Tensor, tolerance: float = 1.0, iterations: int = 200) -> Tensor:
    """Solve the problem of :func:`adaptive_weights` from the inner products of the gradients.

    The solution is exact for two gradients. For more, Frank-Wolfe with exact line search reaches about
    ``1/iterations`` of the largest squared norm.

    Args:
        gram: Inner products ``(M, M)``.
        tolerance: The bound C.
        iterations: Steps of Frank-Wolfe.

    Returns:
        Tensor: Shape ``(M,)``.
    """
    weights = torch.full_like(gram[0], 1 / len(gram))
    for _ in range(iterations if len(gram) > 2 else 1):  # from the middle of a line, one step is enough
        weights = _towards(weights, _vertex(gram @ weights, tolerance), gram)
    return weights


def _vertex(costs: Tensor, tolerance: float) -> Tensor:
    """Return the allowed weights with the lowest total cost: as much as possible for the cheapest first."""
    order = costs.argsort()
    filled = torch.arange(1, len(costs) + 1, dtype=costs.dtype, device=costs.device) * tolerance
    shares = filled.clamp(max=1).diff(prepend=costs.new_zeros(1))
    return torch.zeros_like(costs).scatter(0, order, shares)


def _towards(weights: Tensor, vertex: Tensor, gram: Tensor) -> Tensor:
    """Move from ``weights`` toward a vertex of the allowed weights, to the shortest combined gradient."""
    direction = vertex - weights
    squared_length = direction @ gram @ direction
    # If both ends give the same gradient, all steps are equally good: take none.
    step = torch.where(squared_length > 0, -(weights @ gram @ direction) / squared_length.clamp(min=1e-38),
                       torch.zeros_like(squared_length))
    return weights + step.clamp(0, 1) * direction
