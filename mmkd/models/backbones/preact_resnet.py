"""Pre-activation residual networks for small images (He et al., https://arxiv.org/abs/1603.05027)."""
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import PositiveInt
from .staged import KAIMING, StagedBackbone
from .wide_resnet import PreActivationBlock


class PooledShortcutBlock(PreActivationBlock):
    """A pre-activation block whose shortcut has no parameters.

    If the number of channels changes, the shortcut is the input, average pooled by the stride, with equal
    numbers of channels of zeros in front and behind.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.convShortcut = None
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def shortcut(self, features: Tensor, active: Tensor) -> Tensor:
        if not self.padding:
            return features
        return F.pad(F.avg_pool2d(features, self.stride), (0, 0, 0, 0, self.padding, self.padding))


@MODELS.register_module()
class PreActResNet(StagedBackbone):
    """A pre-activation ResNet with three stages of basic blocks and shortcuts without parameters.

    It is the network ``preact_resnetD_cifar`` of Intel's Distiller, for whose distillation on CIFAR-10 there
    are published figures. The stages ``layer1``, ``layer2`` and ``layer3`` have 16, 32 and 64 channels and
    maps of H, H/2 and H/4. Their outputs precede batch norm and ReLU; the tail is the batch norm and ReLU
    after the last stage.

    Args:
        depth: D = 6n + 2 for n blocks per stage, such as 20 or 32.
        out_indices: Indices of the outputs: 0 to 2 are the stages, 3 is the tail.
        init_cfg: Initialization of the weights.

    Raises:
        MMKDError: If there is no network of this depth.
    """

    stage_names = ('layer1', 'layer2', 'layer3')
    has_tail = True

    def __init__(self, depth: PositiveInt, out_indices: Sequence[int] = (3, ),
                 init_cfg: dict | list | None = KAIMING) -> None:
        super().__init__(out_indices, init_cfg)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise MMKDError(f'The depth of a PreActResNet is 6n + 2, such as 20 or 32, not {depth}.')
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        before = 16
        for name, channels, stride in zip(self.stage_names, (16, 32, 64), (1, 2, 2), strict=True):
            first = PooledShortcutBlock(before, channels, stride)
            later = (PooledShortcutBlock(channels, channels, 1) for _ in range(blocks - 1))
            self.add_module(name, nn.Sequential(first, *later))
            before = channels
        self.bn1 = nn.BatchNorm2d(before)

    def stem(self, images: Tensor) -> Tensor:
        return self.conv1(images)

    def tail(self, features: Tensor) -> Tensor:
        return self.bn1(features).relu()
