"""Convolutions that give a student's map the shape of the teacher's."""
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..losses.tensors import BatchNorm, check_maps


@MODELS.register_module()
class ConvConnector(BaseModule):
    """FitNet's regressor (Romero et al., ICLR 2015): one convolution, with batch norm and ReLU.

    Without ``kernel_size`` it has the shape that the community gives it, and goes to the teacher's height
    and width: a 3x3 convolution of stride 2 halves them, a 4x4 transposed one doubles them, and otherwise
    a convolution without padding, of kernel 1 + H_s - H_t, shrinks them or leaves them as they are.

    With ``kernel_size`` the student's height and width stay, for detectors, where they vary.

    Args:
        kernel_size: Kernel of a convolution that keeps height and width, for instance 1 or 3.
        norm: Whether batch norm follows.
        relu: Whether ReLU follows.
        out_channels: The teacher's by default.
        skip_same: Whether there is nothing to do where both networks have the same shape.
    """

    def __init__(self, kernel_size: int | None = None, norm: bool = True, relu: bool = True,
                 out_channels: int | None = None, skip_same: bool = False) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.norm = norm
        self.relu = relu
        self.out_channels = out_channels
        self.skip_same = skip_same

    def build(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        """Build the layers.

        Args:
            student: Shape of a sample's map, ``(C, H, W)``.
            teacher: The same of the teacher.

        Raises:
            MMKDError: If no such layers take one to the other, with the reason in one sentence.
        """
        check_maps([student, teacher])
        if self.skip_same and tuple(student) == tuple(teacher):
            self.layers = nn.Identity()
            return
        channels = self.out_channels or teacher[0]
        layers = [self._convolution(student, channels, teacher[1:])]
        if self.norm:
            layers.append(BatchNorm(channels))
        if self.relu:
            layers.append(nn.ReLU())
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
        raise MMKDError(f'ConvConnector cannot take a map of {height}x{width} to {size[0]}x{size[1]}; '
                        'give it a `kernel_size`, such as 1, and the loss resamples')

    def forward(self, feature: Tensor) -> Tensor:
        """Transform a map ``(N, C, H, W)`` into ``(N, C', H', W')``."""
        return self.layers(feature)
