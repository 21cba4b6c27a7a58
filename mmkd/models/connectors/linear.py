"""A linear layer that gives a student's feature the length of the teacher's feature."""
import math

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ...settings import PositiveInt
from ..losses.tensors import at_least_float32


@MODELS.register_module()
class LinearConnector(BaseModule):
    """A linear layer on vectors or on flattened maps, whose height and width must not vary.

    Args:
        out_channels: Length of the output; the teacher's number of channels by default.
        normalize: Whether to scale the output to length 1.
    """

    def __init__(self, out_channels: PositiveInt | None = None, normalize: bool = False) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.normalize = normalize

    def build(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        """Build the layer.

        Args:
            student: Shape of a sample's student feature, ``(C,)`` or ``(C, H, W)``.
            teacher: Shape of a sample's teacher feature.
        """
        self.layer = nn.Linear(math.prod(student), self.out_channels or teacher[0])

    def forward(self, feature: Tensor) -> Tensor:
        """Transform ``(N, C)`` or ``(N, C, H, W)`` into ``(N, C')``; float32 at least if normalized."""
        feature = self.layer(feature.flatten(1))
        # With this eps, a vector of zeros stays zero and its gradient does not dwarf those of other vectors.
        return F.normalize(at_least_float32(feature), dim=1, eps=1e-6) if self.normalize else feature
