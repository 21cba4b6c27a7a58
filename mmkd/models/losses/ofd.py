"""OFD: A Comprehensive Overhaul of Feature Distillation.

Byeongho Heo, Jeesoo Kim, Sangdoo Yun, Hyojin Park, Nojun Kwak and Jin Young Choi, ICCV 2019.
"""
import math
from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ...registry import MODELS
from ...settings import NonNegativeFloat
from .base import FeatureLoss
from .tensors import at_least_float32, check_comparable_maps, pooled_alike


def margin_from_batch_norm(weight: Tensor, bias: Tensor) -> Tensor:
    r"""Mean of the negative outputs of a batch norm whose outputs are normally distributed.

    .. math:: E[x \mid x < 0] = \beta - |\gamma| \frac{\varphi(\beta / |\gamma|)}{\Phi(-\beta / |\gamma|)},
              \quad x \sim N(\beta, \gamma^2)

    The authors' code uses ``-3 |γ|`` if less than 1 in 1000 outputs are negative; here the formula holds
    everywhere.

    Args:
        weight: γ, shape ``(C,)``.
        bias: β, shape ``(C,)``.

    Returns:
        Tensor: Shape ``(C,)``, not positive, in float32 at least.
    """
    std = weight.double().abs().clamp(min=1e-12)
    mean = bias.double()
    # φ and Φ both vanish for large means, their ratio does not: erfcx(x) = exp(x²) erfc(x).
    ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(mean / std / math.sqrt(2))
    return (mean - std * ratio).clamp(max=0).to(at_least_float32(weight).dtype)


def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    r"""Squared distance to the margin ReLU of the teacher, except where the student is correctly inactive.

    .. math:: \sum_i \begin{cases} 0 & s_i \le t_i \le 0 \\ (s_i - t_i)^2 & \text{else} \end{cases},
              \quad t = \max(T, m)

    Args:
        student: s, student feature map ``(N, C, H, W)``.
        teacher: T, teacher feature map ``(N, C, H, W)`` before the ReLU; no gradient flows into it.
        margin: m, a negative number per channel ``(C,)``.

    Returns:
        Tensor: A value per sample, summed over channels and positions; shape ``(N,)``, in float32 at least.
    """
    student, target = at_least_float32(student), at_least_float32(teacher)
    target = torch.maximum(target, margin.to(target.dtype)[:, None, None])
    inactive = (student <= target) & (target <= 0)
    return (student - target).masked_fill(inactive, 0).square().flatten(1).sum(1)


class NegativeMean(nn.Module):
    """Mean of the negative responses per channel, averaged over the training batches so far.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(channels))
        # Weight of the next batch with negative responses: 1, 1/2, 1/3, ...; 0 for a fixed mean.
        self.register_buffer('rate', torch.ones(channels))

    @torch.no_grad()
    def update(self, feature: Tensor) -> None:
        """Include a batch of features ``(N, C, H, W)``, those of all ranks together."""
        total = at_least_float32(feature).clamp(max=0).sum((0, 2, 3))
        sums = torch.stack((total, (feature < 0).sum((0, 2, 3)).to(total.dtype)))
        all_reduce(sums)
        total, count = sums
        mean = total / count.clamp(min=1)
        # A mean that overflowed would never recover.
        valid = (count > 0) & mean.isfinite()
        self.mean.lerp_(torch.where(valid, mean, 0).to(self.mean.dtype), self.rate * valid)
        self.rate.div_(1 + self.rate * valid)

    @torch.no_grad()
    def fix(self, mean: Tensor) -> None:
        """Set the mean ``(C,)``, which later batches leave unchanged."""
        self.mean.copy_(mean)
        self.rate.zero_()


@MODELS.register_module()
class OFDLoss(FeatureLoss):
    r"""Overhaul of feature distillation: partial L2 distance between features before the ReLU.

    .. math:: \frac{w}{N} \sum_l 2^{l-L} \sum_n d_p(r_l(S_l), \max(T_l, m_l))

    with d_p and the margin ReLU of :func:`partial_l2`, and a connector r, in the preset a 1x1 convolution
    with batch norm. The margins are the mean negative responses of the teacher per channel, measured on the
    training batches unless :meth:`set_margins` computes them as in the paper. The larger of two maps is
    average pooled to the size of the smaller.

    Args:
        weight: w; the authors' code uses 1/1000 on CIFAR-100 and 1/10000 on ImageNet.
    """

    def __init__(self, weight: NonNegativeFloat = 1e-3) -> None:
        super().__init__(weight)

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)
        self.margins = nn.ModuleList(NegativeMean(shape[0]) for shape in teacher)

    def set_margins(self, level: int, bn_weight: Tensor, bn_bias: Tensor) -> None:
        """Compute a level's margins from the batch norm before the teacher's ReLU, after :meth:`build`.

        Args:
            level: Index of the level.
            bn_weight: γ of the batch norm, ``(C,)``.
            bn_bias: β of the batch norm, ``(C,)``.
        """
        self.margins[level].fix(margin_from_batch_norm(bn_weight, bn_bias))

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        values = []
        for s, t, margin in zip(student, teacher, self.margins, strict=True):
            if self.training:
                margin.update(t)
            s, t = pooled_alike(s, t)
            values.append(partial_l2(s, t, margin.mean))
        return [value * 0.5**level for level, value in enumerate(reversed(values))][::-1]
