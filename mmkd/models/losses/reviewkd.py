"""ReviewKD: Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao and Jia, CVPR 2021)."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat, PositiveInt
from .base import FeatureLoss
from .tensors import BatchNorm, at_least_float32


def hierarchical_context_loss(student: Tensor, teacher: Tensor, sizes: Sequence[int] = (4, 2, 1)) -> Tensor:
    r"""HCL: the mean squared error of two maps and of their averages over increasingly large regions.

    .. math:: \frac{\sum_i 2^{-i} \; MSE(pool_i(S), pool_i(T))}{\sum_i 2^{-i}}

    with :math:`pool_0` the map itself. Sizes that are not smaller than the map are left out, and i counts
    those that remain. The paper does not give weights; these are the released code's.

    Args:
        student: S, student feature map ``(N, C, H, W)``.
        teacher: T, teacher feature map ``(N, C, H, W)``.
        sizes: Heights and widths to which the maps are average pooled.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least.
    """
    # Averaging is linear, so the difference of averages is the average of the difference.
    difference = at_least_float32(student) - at_least_float32(teacher)
    sizes = [size for size in sizes if size < min(difference.shape[-2:])]
    maps = [difference, *(F.adaptive_avg_pool2d(difference, size) for size in sizes)]
    weights = [0.5**i for i in range(len(maps))]
    errors = [weight * level.square().mean(dim=(1, 2, 3))
              for weight, level in zip(weights, maps, strict=True)]
    return sum(errors) / sum(weights)


@MODELS.register_module()
class ReviewKDLoss(FeatureLoss):
    r"""The student's levels, fused from the deepest to the shallowest, imitate the teacher's.

    .. math:: \sum_i HCL(F_i, T_i), \quad F_i = ABF(S_i, F_{i+1})

    with :math:`F_{i+1}` before its last convolution, see :class:`AttentionBasedFusion`, and HCL
    :func:`hierarchical_context_loss`. Levels are ordered from shallow to deep: a classifier's stages and
    optionally its pooled feature ``(N, C)``, as a map of size 1; or a detector's FPN levels. Sizes may vary
    between batches and differ between the networks. The published weights depend on the pair of networks, and
    increase from 0 in the first epochs (``mmkd.WeightScheduleHook``).

    Args:
        mid_channels: Number of channels in which levels are fused. ``None`` takes the number of channels of
            the student's deepest level, at most 512, as in the released code for CIFAR-100.
        weight: Loss weight.
    """

    def __init__(self, mid_channels: PositiveInt | None = 256, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(weight)
        self.mid_channels = mid_channels

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        heights = [shape[1] if len(shape) == 3 else 1 for shape in student]
        if heights != sorted(heights, reverse=True):
            raise MMKDError(f'ReviewKD goes from shallow to deep levels, but heights are {heights}')
        mid_channels = self.mid_channels or min(512, student[-1][0])
        self.fusions = nn.ModuleList(
            AttentionBasedFusion(s[0], mid_channels, t[0], deepest=level == len(student) - 1)
            for level, (s, t) in enumerate(zip(student, teacher, strict=True)))

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        values: list[Tensor] = []
        deeper = None
        levels = list(zip(self.fusions, student, teacher, strict=True))
        for fusion, s, t in reversed(levels):
            s, t = (level[..., None, None] if level.dim() == 2 else level for level in (s, t))
            output, deeper = fusion(at_least_float32(s), deeper, t.shape[-2:])
            values.append(hierarchical_context_loss(output, t))
        return values[::-1]


class AttentionBasedFusion(nn.Module):
    r"""ABF: sums a level and the fused deeper levels, with weights for every position.

    .. math:: z = \sigma(conv_{1 \times 1}([x, y])), \quad z_1 x + z_2 y

    with x the level in mid channels and y the fused deeper levels, resized to x.

    Args:
        in_channels: Number of channels of the student's level.
        mid_channels: Number of channels in which levels are fused.
        out_channels: Number of channels of the teacher's level.
        deepest: Whether there is no deeper level to fuse with.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.reduce_norm = BatchNorm(mid_channels)
        self.attention = None if deepest else nn.Conv2d(2 * mid_channels, 2, 1)
        self.expand = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        self.expand_norm = BatchNorm(out_channels)
        for conv in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, level: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fuse a level with the deeper levels.

        Args:
            level: The student's level ``(N, C, H, W)``.
            deeper: The second output for the next deeper level; ``None`` at the deepest level.
            size: Height and width of the teacher's level.

        Returns:
            tuple[Tensor, Tensor]: The output that is compared with the teacher's level, in its shape, and the
            fused level for the next shallower level, with mid channels.
        """
        x = self.reduce_norm(self.reduce(level))
        if self.attention is not None:
            y = F.interpolate(deeper, x.shape[-2:], mode='nearest')
            weights = self.attention(torch.cat((x, y), dim=1)).sigmoid()
            x = weights[:, :1] * x + weights[:, 1:] * y
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode='nearest')
        return self.expand_norm(self.expand(x)), x
