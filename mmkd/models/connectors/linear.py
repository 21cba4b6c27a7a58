"""A linear layer that gives a student's feature the length of the teacher's."""
import math

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ..losses.tensors import at_least_float32


@MODELS.register_module()
class LinearConnector(BaseModule):
    """One linear layer on a vector or a flattened map.

    A map must always have the same height and width.

    Args:
        out_channels: The teacher's channels by default.
        normalize: Whether to give the result length 1.
    """

    def __init__(self, out_channels: int | None = None, normalize: bool = False) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.normalize = normalize

    def build(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        """Build the layer.

        Args:
            student: Shape of a sample's feature, ``(C,)`` or ``(C, H, W)``.
            teacher: The same of the teacher.
        """
        self.layer = nn.Linear(math.prod(student), self.out_channels or teacher[0])

    def forward(self, feature: Tensor) -> Tensor:
        """Transform ``(N, C)`` or ``(N, C, H, W)`` into ``(N, C')``; float32 at least if normalized."""
        feature = self.layer(feature.flatten(1))
        # A vector of zeros stays, and its gradient is not a million times larger than the others'.
        return F.normalize(at_least_float32(feature), dim=1, eps=1e-6) if self.normalize else feature
