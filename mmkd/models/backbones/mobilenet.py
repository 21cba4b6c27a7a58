"""MobileNets V1 (https://arxiv.org/abs/1704.04861) and V2 (https://arxiv.org/abs/1801.04381)."""
from collections.abc import Sequence
from typing import Annotated

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from torch import Tensor, nn

from ...registry import MODELS
from ...settings import Range
from .staged import KAIMING, StagedBackbone


@MODELS.register_module()
class MobileNetV1(StagedBackbone):
    """MobileNet of Howard et al., table 1: depthwise separable convolutions, 4.23 million parameters.

    The stages ``layer1`` to ``layer4`` have 128, 256, 512 and 1024 channels and maps of H/4, H/8, H/16 and
    H/32, like those of a ResNet.

    Args:
        out_indices: Indices of the stages to return, from 0 to 3.
        init_cfg: Initialization of the weights.
    """

    stage_names = ('layer1', 'layer2', 'layer3', 'layer4')
    img_size = 224
    # Per stage: output channels and strides of its convolutions.
    settings = (
        ((64, 128, 128), (1, 2, 1)),
        ((256, 256), (2, 1)),
        ((512, ) * 6, (2, 1, 1, 1, 1, 1)),
        ((1024, 1024), (2, 1)),
    )

    def __init__(self, out_indices: Sequence[int] = (3, ),
                 init_cfg: dict | list | None = KAIMING) -> None:
        super().__init__(out_indices, init_cfg)
        common = dict(padding=1, norm_cfg=dict(type='BN'))
        self.conv1 = ConvModule(3, 32, 3, stride=2, **common)
        before = 32
        for name, (channels, strides) in zip(self.stage_names, self.settings, strict=True):
            self.add_module(name, nn.Sequential(*(
                DepthwiseSeparableConvModule(incoming, outgoing, 3, stride=stride, **common)
                for incoming, outgoing, stride in zip((before, *channels), channels, strides, strict=False))))
            before = channels[-1]

    def stem(self, images: Tensor) -> Tensor:
        return self.conv1(images)


class InvertedResidual(nn.Module):
    """An inverted residual block: expansion by a 1×1 convolution, depthwise 3×3 convolution, 1×1 projection.

    Each convolution has batch norm, and the first two have a ReLU. The input is added if it has the shape of
    the output.

    Args:
        in_channels: Number of input channels, C.
        out_channels: Number of output channels, D.
        stride: Stride of the depthwise convolution.
        expansion: Number of hidden channels, relative to C.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.adds = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_convolution(in_channels, hidden, 1),
            *_convolution(hidden, hidden, 3, stride=stride, groups=hidden),
            *_convolution(hidden, out_channels, 1)[:2])

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``(N, C, H, W)`` into ``(N, D, H/stride, W/stride)``."""
        return features + self.conv(features) if self.adds else self.conv(features)


@MODELS.register_module()
class CRDMobileNetV2(StagedBackbone):
    """MobileNetV2 for small images, of half width as in CRD's benchmark (https://arxiv.org/abs/1910.10699).

    In contrast to the network of Sandler et al., it has ReLU instead of ReLU6, an expansion in the first
    block as well, numbers of channels that are not rounded to multiples of 8, and one strided convolution
    fewer.

    The four stages are the outputs of ``blocks.1``, ``blocks.2``, ``blocks.4`` and ``blocks.6``, maps of H/2,
    H/4, H/8 and H/16; the tail is a 1×1 convolution to 1280 channels.

    Args:
        width: The width relative to the network of Sandler et al.; 1 in the released code of SAKD, which
            therefore has another network of this name.
        out_indices: Indices of the outputs: 0 to 3 are the stages, 4 is the tail.
        init_cfg: Initialization of the weights.
    """

    stage_names = ('blocks.1', 'blocks.2', 'blocks.4', 'blocks.6')
    has_tail = True
    # Per block: expansion, channels at full width, layers, stride.
    settings = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                (6, 320, 1, 1))

    def __init__(self, width: Annotated[float, Range(at_least=0.1, at_most=1)] = 0.5,
                 out_indices: Sequence[int] = (4, ), init_cfg: dict | list | None = KAIMING) -> None:
        super().__init__(out_indices, init_cfg)
        before = int(32 * width)
        self.conv1 = nn.Sequential(*_convolution(3, before, 3, stride=2))
        self.blocks = nn.Sequential()
        for expansion, full_channels, layers, stride in self.settings:
            channels = int(full_channels * width)
            self.blocks.append(nn.Sequential(*(
                InvertedResidual(channels if index else before, channels, 1 if index else stride, expansion)
                for index in range(layers))))
            before = channels
        self.conv2 = nn.Sequential(*_convolution(before, 1280, 1))

    def stem(self, images: Tensor) -> Tensor:
        return self.conv1(images)

    def stages(self) -> list[tuple[str, nn.Module]]:
        ends = [int(name.rpartition('.')[2]) + 1 for name in self.stage_names]
        return [(name, self.blocks[start:end])
                for name, start, end in zip(self.stage_names, [0, *ends], ends, strict=False)]

    def tail(self, features: Tensor) -> Tensor:
        return self.conv2(features)


def _convolution(in_channels: int, out_channels: int, kernel: int, **kwargs) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False, **kwargs),
            nn.BatchNorm2d(out_channels), nn.ReLU()]
