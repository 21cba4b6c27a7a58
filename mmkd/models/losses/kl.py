"""Kullback-Leibler divergence of softened class probabilities (Hinton et al., 2015)."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tensors import at_least_float32

_ROWS = 2**14


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    r"""KL(teacher ‖ student) of softmax logits, one value per sample.

    .. math:: \tau^2 \sum_k p_k (\log p_k - \log q_k), \quad
              p = softmax(t / \tau), \; q = softmax(s / \tau)

    The factor τ² keeps the magnitude of the gradients independent of τ (Hinton et al., 2015, section 2).
    Computed in float32 at least, whatever the dtype of the logits. Gradients flow into both arguments:
    detach the logits that must not move.

    Args:
        student: s, logits ``(N, K)`` of the network that imitates.
        teacher: t, logits ``(N, K)`` of the network that is imitated.
        temperature: τ > 0; a scalar tensor may have a gradient.

    Returns:
        Tensor: Shape ``(N,)``, in nats times τ².
    """
    log_p = F.log_softmax(at_least_float32(teacher) / temperature, dim=-1)
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def bernoulli_kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(teacher ‖ student) of sigmoid logits, one value per sample.

    Every class is a separate binary decision, and the divergences of the K decisions add up:

    .. math:: \tau^2 \sum_k p_k \log\frac{p_k}{q_k} + (1 - p_k) \log\frac{1 - p_k}{1 - q_k}, \quad
              p = \sigma(t / \tau), \; q = \sigma(s / \tau)

    Otherwise as :func:`kl_divergence`. Dense detectors have about 10^5 rows per image, so nothing but the two
    arguments is kept for the backward pass.

    Args:
        student: s, logits ``(N, K)`` of the network that imitates.
        teacher: t, logits ``(N, K)`` of the network that is imitated.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(N,)``, in nats times τ².
    """
    return _BernoulliKL.apply(student, teacher, temperature)


class _BernoulliKL(torch.autograd.Function):

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        rows = [temperature**2 * _bernoulli_kl(s, t).sum(dim=-1)
                for s, t in _scaled_rows(student, teacher, temperature)]
        return torch.cat(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        tau = ctx.temperature
        student_grad = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        teacher_grad = torch.empty_like(teacher) if ctx.needs_input_grad[1] else None
        start = 0
        for s, t in _scaled_rows(student, teacher, tau):
            rows = slice(start, start + len(t))
            weight, p = tau * gradient[rows, None], t.sigmoid()
            if student_grad is not None:
                student_grad[rows] = weight * (s.sigmoid() - p)
            if teacher_grad is not None:
                teacher_grad[rows] = weight * p * (1 - p) * (t - s)
            start += len(t)
        return student_grad, teacher_grad, None


def _scaled_rows(student: Tensor, teacher: Tensor, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits over τ, some rows at a time to keep temporary results small."""
    pairs = zip(student.split(_ROWS), teacher.split(_ROWS), strict=True)
    return ((at_least_float32(s) / temperature, at_least_float32(t) / temperature) for s, t in pairs)


def _bernoulli_kl(s: Tensor, t: Tensor) -> Tensor:
    p = t.sigmoid()
    positive = p * (F.logsigmoid(t) - F.logsigmoid(s))
    return positive + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
