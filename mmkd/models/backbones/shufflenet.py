"""ShuffleNets V1 (https://arxiv.org/abs/1707.01083) and V2 (https://arxiv.org/abs/1807.11164)."""
from collections.abc import Sequence

import torch
from mmpretrain.models.utils import channel_shuffle
from torch import Tensor, nn

from ...registry import MODELS
from .staged import StagedBackbone


class _CRDShuffleNet(StagedBackbone):
    """The common structure of both networks: a 1×1 convolution as the stem, and three stages."""

    stage_names = ('layer1', 'layer2', 'layer3')
    layers = (4, 8, 4)

    def __init__(self, out_indices: Sequence[int], init_cfg: dict | list | None) -> None:
        super().__init__(out_indices, init_cfg)
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)

    def stem(self, images: Tensor) -> Tensor:
        return self.bn1(self.conv1(images)).relu()


class ShuffleUnit(nn.Module):
    """ShuffleNetV1's unit (figure 2): grouped 1×1, shuffle, depthwise 3×3 and grouped 1×1 with a shortcut.

    With stride 2, the shortcut is average pooled and concatenated instead of added.

    Args:
        in_channels: Number of input channels, C.
        out_channels: Number of output channels, D, including those of the shortcut.
        stride: Stride of the depthwise convolution, 1 or 2.
        groups: Number of groups of the last convolution.
        first_groups: Number of groups of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int,
                 first_groups: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.first_groups = first_groups
        residual_channels = out_channels - in_channels if stride == 2 else out_channels
        hidden = residual_channels // 4
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, residual_channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(residual_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``(N, C, H, W)`` into ``(N, D, H/stride, W/stride)``."""
        residual = channel_shuffle(self.bn1(self.conv1(features)).relu(), self.first_groups)
        residual = self.bn2(self.conv2(residual)).relu()
        residual = self.bn3(self.conv3(residual))
        if self.pool is None:
            return (residual + features).relu()
        return torch.cat([residual, self.pool(features)], dim=1).relu()


@MODELS.register_module()
class CRDShuffleNetV1(_CRDShuffleNet):
    """ShuffleNet of 3 groups for small images, as in CRD's benchmark (https://arxiv.org/abs/1910.10699).

    In contrast to the network of Zhang et al., its stem is a 1×1 convolution of stride 1 without pooling, and
    there is a ReLU after its depthwise convolutions.

    The stages ``layer1``, ``layer2`` and ``layer3`` have 240, 480 and 960 channels and maps of H/2, H/4 and
    H/8.

    Args:
        out_indices: Indices of the stages to return, from 0 to 2.
        init_cfg: Initialization of the weights; PyTorch's default initialization by default, as in CRD's
            code.
    """

    groups = 3

    def __init__(self, out_indices: Sequence[int] = (2, ), init_cfg: dict | list | None = None) -> None:
        super().__init__(out_indices, init_cfg)
        before = 24
        for name, channels, layers in zip(self.stage_names, (240, 480, 960), self.layers, strict=True):
            first = ShuffleUnit(before, channels, 2, self.groups, 1 if before == 24 else self.groups)
            self.add_module(name, nn.Sequential(first, *(
                ShuffleUnit(channels, channels, 1, self.groups, self.groups) for _ in range(layers - 1))))
            before = channels


class SplitUnit(nn.Module):
    """ShuffleNetV2's unit (figure 3c): half of the channels are convolved, then all are shuffled.

    Args:
        channels: Number of channels, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``(N, C, H, W)`` into the same shape."""
        identity, residual = features.chunk(2, dim=1)
        residual = self.bn1(self.conv1(residual)).relu()
        residual = self.bn3(self.conv3(self.bn2(self.conv2(residual)))).relu()
        return channel_shuffle(torch.cat([identity, residual], dim=1), 2)


class DownUnit(nn.Module):
    """ShuffleNetV2's unit of stride 2 (figure 3d): two branches on all channels, then all are shuffled.

    Args:
        in_channels: Number of input channels, C.
        out_channels: Number of output channels, D.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels,
                               bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``(N, C, H, W)`` into ``(N, D, H/2, W/2)``."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(features)))).relu()
        right = self.bn3(self.conv3(features)).relu()
        right = self.bn5(self.conv5(self.bn4(self.conv4(right)))).relu()
        return channel_shuffle(torch.cat([left, right], dim=1), 2)


@MODELS.register_module()
class CRDShuffleNetV2(_CRDShuffleNet):
    """ShuffleNetV2 1× for small images, as in CRD's benchmark (https://arxiv.org/abs/1910.10699).

    In contrast to the network of Ma et al., its stem is a 1×1 convolution of stride 1 without pooling.

    The stages ``layer1``, ``layer2`` and ``layer3`` have 116, 232 and 464 channels and maps of H/2, H/4 and
    H/8; the tail is a 1×1 convolution to 1024 channels.

    Args:
        out_indices: Indices of the outputs: 0 to 2 are the stages, 3 is the tail.
        init_cfg: Initialization of the weights; PyTorch's default initialization by default, as in CRD's
            code.
    """

    has_tail = True

    def __init__(self, out_indices: Sequence[int] = (3, ), init_cfg: dict | list | None = None) -> None:
        super().__init__(out_indices, init_cfg)
        before = 24
        for name, channels, layers in zip(self.stage_names, (116, 232, 464), self.layers, strict=True):
            self.add_module(name, nn.Sequential(
                DownUnit(before, channels), *(SplitUnit(channels) for _ in range(layers - 1))))
            before = channels
        self.conv2 = nn.Conv2d(before, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)

    def tail(self, features: Tensor) -> Tensor:
        return self.bn2(self.conv2(features)).relu()
