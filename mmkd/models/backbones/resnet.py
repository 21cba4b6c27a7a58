"""The residual networks of CRD's benchmark (https://arxiv.org/abs/1910.10699), based on MMPretrain's."""
from collections.abc import Sequence

from mmpretrain.models.backbones import ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import PositiveInt
from .staged import Staged


class _StagedResNet(Staged, ResNet_CIFAR):
    """MMPretrain's ResNet for small images, with stages that can be run one by one."""

    def make_res_layer(self, **kwargs) -> nn.Module:
        # Not in place, because hooks may record the input of a block's last ReLU.
        return super().make_res_layer(act_cfg=dict(type='ReLU', inplace=False), **kwargs)

    @property
    def stage_names(self) -> Sequence[str]:
        return self.res_layers

    def stem(self, images: Tensor) -> Tensor:
        return self.relu(self.norm1(self.conv1(images)))


@MODELS.register_module()
class CRDResNet(_StagedResNet):
    """A ResNet with three stages of basic blocks (He et al., https://arxiv.org/abs/1512.03385, section 4.2).

    The stages ``layer1``, ``layer2`` and ``layer3`` have maps of H, H/2 and H/4. If the number of channels or
    the size changes, the shortcut is a 1×1 convolution with batch norm.

    Args:
        depth: 6n + 2 for n blocks per stage: 8, 14, 20, 32, 44, 56 or 110.
        stem_channels: Number of channels of the first convolution; 32 in the networks "x4".
        base_channels: Number of channels of the first stage; the next stages have 2 and 4 times as many. 64
            in the networks "x4".
        out_indices: Indices of the stages to return, from 0 to 2.
        **kwargs: Further arguments of MMPretrain's ``ResNet``, for instance ``frozen_stages``, ``norm_eval``,
            ``init_cfg``.

    Raises:
        MMKDError: If there is no network of this depth.
    """

    arch_settings = {depth: (BasicBlock, ((depth - 2) // 6, ) * 3) for depth in (8, 14, 20, 32, 44, 56, 110)}

    def __init__(self, depth: PositiveInt, stem_channels: PositiveInt = 16, base_channels: PositiveInt = 16,
                 out_indices: Sequence[int] = (2, ), **kwargs) -> None:
        if depth not in self.arch_settings:
            raise MMKDError(f'CRDResNet has depth {", ".join(map(str, self.arch_settings))}, not {depth}.')
        super().__init__(
            depth, stem_channels=stem_channels, base_channels=base_channels, num_stages=3, strides=(1, 2, 2),
            dilations=(1, 1, 1), out_indices=out_indices, zero_init_residual=False, **kwargs)


@MODELS.register_module()
class CRDResNet50(_StagedResNet):
    """ResNet-50 with a stem for small images: a 3×3 convolution of stride 1, without pooling.

    The stages ``layer1`` to ``layer4`` have maps of H, H/2, H/4 and H/8.

    Args:
        out_indices: Indices of the stages to return, from 0 to 3.
        **kwargs: Further arguments of MMPretrain's ``ResNet``, for instance ``frozen_stages``, ``norm_eval``,
            ``init_cfg``.
    """

    def __init__(self, out_indices: Sequence[int] = (3, ), **kwargs) -> None:
        super().__init__(50, out_indices=out_indices, zero_init_residual=False, **kwargs)
