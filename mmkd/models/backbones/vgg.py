"""VGG for small images (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556)."""
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import PositiveInt
from .staged import KAIMING, StagedBackbone


@MODELS.register_module()
class CRDVGG(StagedBackbone):
    """VGG with batch norm and no hidden linear layers, as in CRD's benchmark (https://arxiv.org/abs/1910.10699).

    The stem is ``block0``; the stages ``block1`` to ``block4`` have maps of H/2, H/4, H/8 and H/8. A block
    begins with max pooling, if it changes the resolution, and ends with a ReLU.

    Args:
        depth: 8, 11, 13, 16 or 19.
        out_indices: Indices of the stages to return, from 0 to 3.
        init_cfg: Initialization of the weights.

    Raises:
        MMKDError: If there is no network of this depth.
    """

    convolutions = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3),
                    19: (2, 2, 4, 4, 4)}
    stage_names = ('block1', 'block2', 'block3', 'block4')

    def __init__(self, depth: PositiveInt, out_indices: Sequence[int] = (3, ),
                 init_cfg: dict | list | None = KAIMING) -> None:
        super().__init__(out_indices, init_cfg)
        if depth not in self.convolutions:
            raise MMKDError(f'CRDVGG has depth {", ".join(map(str, self.convolutions))}, not {depth}.')
        first, *others = self.convolutions[depth]
        self.block0 = _block(3, 64, first)
        self.block1 = _block(64, 128, others[0], pooled=True)
        self.block2 = _block(128, 256, others[1], pooled=True)
        self.block3 = _block(256, 512, others[2], pooled=True)
        self.block4 = _block(512, 512, others[3])

    def stem(self, images: Tensor) -> Tensor:
        return self.block0(images)


def _block(in_channels: int, channels: int, convolutions: int, pooled: bool = False) -> nn.Sequential:
    layers = []
    for index in range(convolutions):
        layers += [nn.Conv2d(channels if index else in_channels, channels, 3, padding=1),
                   nn.BatchNorm2d(channels), nn.ReLU()]
    named = [(str(index), layer) for index, layer in enumerate(layers)]
    # The pooling has a name so that the numbers of the other layers are those in the public checkpoints.
    return nn.Sequential(OrderedDict([('pool', nn.MaxPool2d(2))] * pooled + named))
