"""How several teachers are weighted."""
from collections.abc import Sequence
from typing import Literal

import torch
from mmengine.dist import all_reduce
from torch import Tensor

TeacherWeights = Literal['equal', 'adaptive']
"""Ways to weight several teachers: alike, or by :func:`adaptive_weights`."""


def adaptive_weights(gradients: Sequence[Tensor]) -> Tensor:
    r"""Weights with which the teachers' gradients conflict least (AEKD, Du et al., NeurIPS 2020).

    .. math:: \min_w \| \sum_m w_m g_m \|^2, \quad w_m ≥ 0, \; \sum_m w_m = 1

    over the batch of all ranks, so that the weights are the same on every rank.

    Args:
        gradients: For each of the M teachers, the gradient of its loss with respect to the student's logits;
            all of the same shape.

    Returns:
        Tensor: Shape ``(M,)``, without gradient.
    """
    with torch.no_grad():
        flat = torch.stack([gradient.flatten() for gradient in gradients]).float()
        gram = flat @ flat.T
        all_reduce(gram)
        return minimum_norm_weights(gram)


def minimum_norm_weights(gram: Tensor, iterations: int = 200) -> Tensor:
    """Solve the problem of :func:`adaptive_weights` from the inner products of the gradients.

    The solution is exact for two gradients. For more, Frank-Wolfe with exact line search reaches about
    ``1/iterations`` of the largest squared norm.

    Args:
        gram: Inner products ``(M, M)``.
        iterations: Steps of Frank-Wolfe.

    Returns:
        Tensor: Shape ``(M,)``.
    """
    weights = torch.full_like(gram[0], 1 / len(gram))
    if len(gram) == 2:
        return _towards(torch.eye(2, dtype=gram.dtype, device=gram.device)[0], gram, gram.new_ones(()))
    for _ in range(iterations):
        weights = _towards(weights, gram, (gram @ weights).argmin())
    return weights


def _towards(weights: Tensor, gram: Tensor, index: Tensor) -> Tensor:
    """Move from ``weights`` toward one vertex of the simplex, to the shortest combined gradient."""
    vertex = torch.zeros_like(weights).scatter(0, index.long().reshape(1), 1.0)
    direction = vertex - weights
    squared_length = direction @ gram @ direction
    # If both ends give the same gradient, all steps are equally good: take none.
    step = torch.where(squared_length > 0, -(weights @ gram @ direction) / squared_length.clamp(min=1e-38),
                       torch.zeros_like(squared_length))
    return weights + step.clamp(0, 1) * direction
