"""Kullback-Leibler divergence of softened class probabilities (Hinton et al., 2015)."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tensors import at_least_float32

_ROWS = 2**14


def kl_divergence(target: Tensor, prediction: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(target ‖ prediction) of softmax logits, one value per sample.

    .. math:: \tau^2 \sum_k p_k (\log p_k - \log q_k), \quad
              p = softmax(target/\tau), \; q = softmax(prediction/\tau)

    The factor τ² keeps the size of gradients when τ changes (Hinton et al., 2015, section 2). Computed
    in float32 at least, whatever the dtype of the logits. Gradients flow into both arguments: detach the
    one that must not move.

    Args:
        target: Logits ``(N, K)`` of the distribution that is imitated.
        prediction: Logits ``(N, K)`` of the one that imitates.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(N,)``, in nats times τ².
    """
    log_p = F.log_softmax(at_least_float32(target) / temperature, dim=-1)
    log_q = F.log_softmax(at_least_float32(prediction) / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def bernoulli_kl_divergence(target: Tensor, prediction: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(target ‖ prediction) of sigmoid logits, one value per sample.

    Every class is a yes or no of its own, and the divergences of the K of them add up:

    .. math:: \tau^2 \sum_k p_k \log\frac{p_k}{q_k} + (1 - p_k) \log\frac{1 - p_k}{1 - q_k}, \quad
              p = \sigma(target/\tau), \; q = \sigma(prediction/\tau)

    Otherwise as :func:`kl_divergence`. Dense detectors have some 10^5 rows an image, so nothing is kept for
    the backward pass but the two arguments.

    Args:
        target: Logits ``(N, K)`` of the probabilities that are imitated.
        prediction: Logits ``(N, K)`` of those that imitate.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(N,)``, in nats times τ².
    """
    return _BernoulliKL.apply(target, prediction, temperature)


class _BernoulliKL(torch.autograd.Function):

    @staticmethod
    def forward(ctx, target: Tensor, prediction: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(target, prediction)
        ctx.temperature = temperature
        rows = [temperature**2 * _bernoulli_kl(t, s).sum(dim=-1)
                for t, s in _scaled_rows(target, prediction, temperature)]
        return torch.cat(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        target, prediction = ctx.saved_tensors
        tau = ctx.temperature
        found = [torch.empty_like(one) if wanted else None
                 for one, wanted in zip((target, prediction), ctx.needs_input_grad, strict=False)]
        start = 0
        for t, s in _scaled_rows(target, prediction, tau):
            rows = slice(start, start + len(t))
            weight, p = tau * gradient[rows, None], t.sigmoid()
            if found[0] is not None:
                found[0][rows] = weight * p * (1 - p) * (t - s)
            if found[1] is not None:
                found[1][rows] = weight * (s.sigmoid() - p)
            start += len(t)
        return *found, None


def _scaled_rows(target: Tensor, prediction: Tensor, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits over τ, some rows at a time, so that temporary results stay small."""
    pairs = zip(target.split(_ROWS), prediction.split(_ROWS), strict=True)
    return ((at_least_float32(t) / temperature, at_least_float32(s) / temperature) for t, s in pairs)


def _bernoulli_kl(t: Tensor, s: Tensor) -> Tensor:
    p = t.sigmoid()
    yes = p * (F.logsigmoid(t) - F.logsigmoid(s))
    return yes + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
