"""ReviewKD: Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao and Jia, CVPR 2021)."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from .base import FeatureLoss
from .tensors import BatchNorm, at_least_float32


def hierarchical_context_loss(student: Tensor, teacher: Tensor, pooled: Sequence[int] = (4, 2, 1)) -> Tensor:
    r"""HCL: the squared error of two maps and of their averages over ever larger parts.

    .. math:: \frac{\sum_i 2^{-i} \; MSE(pool_i(S), pool_i(T))}{\sum_i 2^{-i}}

    with :math:`pool_0` the map itself. Sizes that are not smaller than the map are left out, and the halving
    goes over those that remain. The paper gives no weights; these are the released code's.

    Args:
        student: Feature map ``(N, C, H, W)``.
        teacher: Feature map ``(N, C, H, W)``.
        pooled: Heights, and widths, that the maps are averaged to.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least.
    """
    # Averaging is linear: the difference of averages is the average of the difference.
    difference = at_least_float32(student) - at_least_float32(teacher)
    sizes = [size for size in pooled if size < min(difference.shape[-2:])]
    maps = [difference, *(F.adaptive_avg_pool2d(difference, size) for size in sizes)]
    weights = [0.5**i for i in range(len(maps))]
    errors = (weight * one.square().mean(dim=(1, 2, 3)) for weight, one in zip(weights, maps, strict=True))
    return sum(errors) / sum(weights)


@MODELS.register_module()
class ReviewKDLoss(FeatureLoss):
    r"""The student's levels, fused from the deepest to the shallowest, imitate the teacher's.

    .. math:: \sum_i HCL(F_i, T_i), \quad F_i = ABF(S_i, F_{i+1})

    with :math:`F_{i+1}` as it is before its last convolution, see :class:`AttentionBasedFusion`, and HCL
    :func:`hierarchical_context_loss`. Levels go from shallow to deep: a classifier's stages, and at will its
    pooled feature ``(N, C)`` as a map of size 1; or a detector's FPN levels. Sizes may differ from batch to
    batch, and between the networks. The published weights depend on the pair of networks, and grow from 0
    in the first epochs (``mmkd.WeightScheduleHook``).

    Args:
        mid_channels: Channels that levels are fused in. ``None``: those of the student's deepest level, 512
            at most, as in the released code for CIFAR-100.
        weight: Factor of the loss.
    """

    def __init__(self, mid_channels: int | None = 256, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.mid_channels = mid_channels

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        heights = [shape[1] if len(shape) == 3 else 1 for shape in student]
        if heights != sorted(heights, reverse=True):
            raise MMKDError(f'ReviewKD goes from shallow to deep levels, but heights are {heights}')
        mid_channels = self.mid_channels or min(512, student[-1][0])
        self.fusions = nn.ModuleList(
            AttentionBasedFusion(own[0], mid_channels, other[0], deepest=level == len(student) - 1)
            for level, (own, other) in enumerate(zip(student, teacher, strict=True)))

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        values, fused = [], None
        levels = list(zip(self.fusions, student, teacher, strict=True))
        for fusion, own, other in reversed(levels):
            own, other = (level[..., None, None] if level.dim() == 2 else level for level in (own, other))
            output, fused = fusion(at_least_float32(own), fused, other.shape[-2:])
            values.append(hierarchical_context_loss(output, other))
        return values[::-1]


class AttentionBasedFusion(nn.Module):
    r"""ABF: adds a level and what comes from deeper levels, each weighted at every place.

    .. math:: z = \sigma(conv_{1 \times 1}([x, y])), \quad z_1 x + z_2 y

    with x the level in mid channels and y the deeper levels, enlarged to it.

    Args:
        in_channels: Channels of the student's level.
        mid_channels: Channels of what is fused.
        out_channels: Channels of the teacher's level.
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
        """Fuse.

        Args:
            level: ``(N, C, H, W)`` of the student.
            deeper: The second of what this returned for the next deeper level.
            size: Height and width of the teacher's level.

        Returns:
            tuple: What imitates the teacher's level, in its shape, and what goes to the next shallower level,
            with mid channels.
        """
        x = self.reduce_norm(self.reduce(level))
        if self.attention is not None:
            y = F.interpolate(deeper, x.shape[-2:], mode='nearest')
            weights = self.attention(torch.cat((x, y), dim=1)).sigmoid()
            x = weights[:, :1] * x + weights[:, 1:] * y
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode='nearest')
        return self.expand_norm(self.expand(x)), x
