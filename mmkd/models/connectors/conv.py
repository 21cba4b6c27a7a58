"""Convolutions that give a student's map the shape of the teacher's map."""
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import PositiveInt
from ..losses.tensors import BatchNorm, check_maps


@MODELS.register_module()
class ConvConnector(BaseModule):
    """A convolution with batch norm and ReLU, such as FitNet's regressor (Romero et al., ICLR 2015).

    Without ``kernel_size``, the convolution has the form that is common in the community and also changes
    height and width to the teacher's: a 3x3 convolution of stride 2 halves them, a 4x4 transposed convolution
    doubles them, and otherwise a convolution without padding, of kernel size 1 + H_s - H_t, reduces or keeps
    them, and a transposed convolution of the largest stride that fits enlarges them.

    With ``kernel_size``, the map keeps its height and width, as is needed for detectors, where they vary.

    Args:
        kernel_size: Kernel size of a convolution that keeps height and width, for instance 1 or 3.
        norm: Whether to add batch norm.
        relu: Whether to add a ReLU.
        out_channels: Number of output channels; the teacher's by default.
        skip_same: Whether to leave out all layers if the map already has the shape of their output.
        pool: Whether to average pool the map before the convolution, by the whole number of times that its
            height and width are larger than the teacher's; meant for use with ``kernel_size``.
    """

    def __init__(self, kernel_size: PositiveInt | None = None, norm: bool = True, relu: bool = True,
                 out_channels: PositiveInt | None = None, skip_same: bool = False,
                 pool: bool = False) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.norm = norm
        self.relu = relu
        self.out_channels = out_channels
        self.skip_same = skip_same
        self.pool = pool

    def build(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        """Build the layers.

        Args:
            student: Shape of a sample's student map, ``(C, H, W)``.
            teacher: Shape of a sample's teacher map.

        Raises:
            MMKDError: If no such layers transform one shape into the other; the message is the reason.
        """
        check_maps([student, teacher])
        channels = self.out_channels or teacher[0]
        size = teacher[1:] if self.kernel_size is None else student[1:]
        if self.skip_same and tuple(student) == (channels, *size):
            self.layers = nn.Identity()
            return
        layers = [self._convolution(student, channels, teacher[1:])]
        if self.norm:
            layers.append(BatchNorm(channels))
        if self.relu:
            layers.append(nn.ReLU())
        factors = tuple(max(1, s // t) for s, t in zip(student[1:], teacher[1:], strict=True))
        if self.pool and factors != (1, 1):
            layers.insert(0, nn.AvgPool2d(factors))
        self.layers = nn.Sequential(*layers)

    def _convolution(self, student: tuple[int, ...], channels: int, size: tuple[int, ...]) -> nn.Module:
        in_channels, height, width = student
        bias = not self.norm
        if self.kernel_size is not None:
            return nn.Conv2d(in_channels, channels, self.kernel_size, padding='same', bias=bias)
        if (height, width) == (2 * size[0], 2 * size[1]):
            return nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=bias)
        if (2 * height, 2 * width) == size:
            return nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1, bias=bias)
        if height >= size[0] and width >= size[1]:
            return nn.Conv2d(in_channels, channels, (1 + height - size[0], 1 + width - size[1]), bias=bias)
        if height <= size[0] and width <= size[1]:
            stride = size[0] // height, size[1] // width
            kernel = size[0] - stride[0] * (height - 1), size[1] - stride[1] * (width - 1)
            return nn.ConvTranspose2d(in_channels, channels, kernel, stride=stride, bias=bias)
        raise MMKDError(f'ConvConnector cannot resize a map from {height}x{width} to {size[0]}x{size[1]}; '
                        'set its `kernel_size`, for instance to 1, and the loss resamples')

    def forward(self, feature: Tensor) -> Tensor:
        """Transform a map ``(N, C, H, W)`` into ``(N, C', H', W')``."""
        return self.layers(feature)
