"""Wide residual networks (Zagoruyko and Komodakis, https://arxiv.org/abs/1605.07146)."""
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import PositiveInt
from .staged import KAIMING, StagedBackbone


class PreActivationBlock(nn.Module):
    """Two 3×3 convolutions, each preceded by batch norm and ReLU, with a shortcut.

    If the number of channels changes, the shortcut is a 1×1 convolution of the activated input.

    Args:
        in_channels: Number of input channels, C.
        out_channels: Number of output channels, D.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None  # named as in the public checkpoints
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``(N, C, H, W)`` into ``(N, D, H/stride, W/stride)``."""
        active = self.bn1(features).relu()
        residual = self.conv2(self.bn2(self.conv1(active)).relu())
        return residual + self.shortcut(features, active)

    def shortcut(self, features: Tensor, active: Tensor) -> Tensor:
        """Return what is added to the convolutions of the activated input ``active``."""
        return features if self.convShortcut is None else self.convShortcut(active)


@MODELS.register_module()
class CRDWideResNet(StagedBackbone):
    """WRN-d-k for small images, as in CRD's benchmark (https://arxiv.org/abs/1910.10699).

    The stages ``block1``, ``block2`` and ``block3`` have 16k, 32k and 64k channels and maps of H, H/2 and
    H/4. Their outputs precede batch norm and ReLU; the tail is the batch norm and ReLU after the last stage.

    Args:
        depth: d = 6n + 4 for n blocks per stage.
        width: k.
        out_indices: Indices of the outputs: 0 to 2 are the stages, 3 is the tail.
        init_cfg: Initialization of the weights.

    Raises:
        MMKDError: If there is no network of this depth.
    """

    stage_names = ('block1', 'block2', 'block3')
    has_tail = True

    def __init__(self, depth: PositiveInt, width: PositiveInt, out_indices: Sequence[int] = (3, ),
                 init_cfg: dict | list | None = KAIMING) -> None:
        super().__init__(out_indices, init_cfg)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise MMKDError(f'The depth of a CRDWideResNet is 6n + 4, such as 16 or 40, not {depth}.')
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels = 16
        for name, factor, stride in zip(self.stage_names, (16, 32, 64), (1, 2, 2), strict=True):
            first = PreActivationBlock(channels, factor * width, stride)
            channels = factor * width
            later = (PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1))
            self.add_module(name, nn.Sequential(OrderedDict(layer=nn.Sequential(first, *later))))
        self.bn1 = nn.BatchNorm2d(channels)

    def stem(self, images: Tensor) -> Tensor:
        return self.conv1(images)

    def tail(self, features: Tensor) -> Tensor:
        return self.bn1(features).relu()
