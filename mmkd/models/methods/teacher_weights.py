"""How much each of several teachers counts."""
from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor


def adaptive_weights(gradients: Sequence[Tensor]) -> Tensor:
    r"""Weights with which the teachers' gradients disagree least (AEKD, Du et al., NeurIPS 2020).

    .. math:: \min_w \| \sum_m w_m g_m \|^2, \quad w_m ≥ 0, \; \sum_m w_m = 1

    over the batch of all ranks, so that the weights are the same on every rank.

    Args:
        gradients: For each teacher, the gradient of its loss with respect to the student's logits; all of
            one shape.

    Returns:
        Tensor: Shape ``(M,)``, without gradient.
    """
    with torch.no_grad():
        flat = torch.stack([gradient.flatten() for gradient in gradients]).float()
        gram = flat @ flat.T
        if get_world_size() > 1:
            all_reduce(gram, op='sum')
        return minimum_norm_weights(gram)


def minimum_norm_weights(gram: Tensor, iterations: int = 200) -> Tensor:
    """Solve the problem of :func:`adaptive_weights` for given inner products of the gradients.

    Exact for two; by Frank-Wolfe with exact line search beyond, to about ``1/iterations`` of the largest
    squared norm.

    Args:
        gram: Inner products ``(M, M)``.
        iterations: Steps of Frank-Wolfe.

    Returns:
        Tensor: Shape ``(M,)``.
    """
    weights = torch.full_like(gram[0], 1 / len(gram))
    if len(gram) == 1:
        return weights
    if len(gram) == 2:
        return _towards(torch.eye(2, dtype=gram.dtype, device=gram.device)[0], gram, gram.new_ones(()))
    for _ in range(iterations):
        weights = _towards(weights, gram, (gram @ weights).argmin())
    return weights


def _towards(weights: Tensor, gram: Tensor, index: Tensor) -> Tensor:
    """Go from ``weights`` toward one vertex of the simplex, to the shortest combined gradient."""
    vertex = torch.zeros_like(weights).scatter(0, index.long().reshape(1), 1.0)
    direction = vertex - weights
    length = direction @ gram @ direction
    # Where both ends are the same gradient, every step is as good: take none.
    step = torch.where(length > 0, -(weights @ gram @ direction) / length.clamp(min=1e-38),
                       torch.zeros_like(length))
    return weights + step.clamp(0, 1) * direction
