"""Means and whole batches over the processes of distributed training."""
import torch
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor
from torch.nn import functional as F

from ..errors import MMKDError


def mean_over_ranks(total: Tensor, minimum: float = 1e-6) -> Tensor:
    """Average the total weight of the samples over all ranks.

    A loss that is divided by this mean gives every sample of the global batch the same weight, although the
    ranks may hold different numbers of samples.

    Args:
        total: The total weight on this rank, a scalar.
        minimum: Lower bound of the result, so that it can be divided by.

    Returns:
        Tensor: The mean over ranks, at least ``minimum``; a scalar.
    """
    total = total.clone()
    all_reduce(total, op='mean')
    return total.clamp(min=minimum)


def gather_over_ranks(samples: Tensor) -> Tensor:
    """Concatenate the samples of all ranks, whose numbers may differ, in the order of the ranks.

    If all ranks compute the same loss from the result, the gradients that DDP averages over the ranks are
    those of one process with the whole batch.

    Args:
        samples: Shape ``(N, ...)``.

    Returns:
        Tensor: The samples of all ranks, ``(sum of N, ...)``.

    Raises:
        MMKDError: On all ranks, if the samples of two ranks have different shapes.
    """
    if get_world_size() == 1:
        return samples
    shapes = torch.stack(all_gather(torch.tensor(samples.shape, device=samples.device))).tolist()
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        raise MMKDError(f'gather=True needs samples of the same shape on all processes, not {shapes}: use '
                        'images of one size, a pooled feature, or gather=False.')
    return _Gather.apply(samples, [number for number, *_ in shapes])


class _Gather(torch.autograd.Function):
    """Gathers samples; backward needs no communication, because all ranks have the same gradient."""

    @staticmethod
    def forward(ctx, samples: Tensor, numbers: list[int]) -> Tensor:
        ctx.numbers = numbers
        # Collective operations need the same shape on all ranks.
        padding = [0, 0] * (samples.dim() - 1) + [0, max(numbers) - len(samples)]
        gathered = all_gather(F.pad(samples, padding).contiguous())
        return torch.cat([part[:number] for part, number in zip(gathered, numbers, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        # The sum of the gradients of all ranks, which are equal.
        return grad.split(ctx.numbers)[get_rank()] * len(ctx.numbers), None
