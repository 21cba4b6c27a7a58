"""CTKD: Curriculum Temperature for Knowledge Distillation (Li et al., AAAI 2023)."""
import math

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ...settings import Fraction, NonNegativeFloat, PositiveFloat
from .base import LogitLoss
from .kl import kl_divergence


@MODELS.register_module()
class CTKDLoss(LogitLoss):
    r"""KL divergence at a temperature that is trained to make the student's task harder.

    .. math:: \tau^2 \, KL(softmax(t / \tau) \, ‖ \, softmax(s / \tau)), \quad
              \tau = \tau_{start} + \tau_{range} \, \sigma(\theta)

    The parameter θ starts at 1. Its gradient is reversed and multiplied by λ, so the student minimizes the
    loss and the temperature maximizes it. λ rises from 0 to 1 along a cosine during the first part of the
    training, from easy to hard. This is the global temperature of the paper; the one for each sample, which
    an MLP predicts, is not included.

    Args:
        start: The lowest temperature τ_start.
        range_: The width τ_range of the temperature's range; τ is about 15.6 at first.
        ramp: The fraction of the training during which λ rises; 10 of 240 epochs in the released code.
    """

    def __init__(self, start: PositiveFloat = 1.0, range_: NonNegativeFloat = 20.0,
                 ramp: Fraction = 10 / 240) -> None:
        super().__init__()
        self.start = start
        self.range_ = range_
        self.ramp = ramp
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        constant = self.theta.detach()
        theta = constant - self.reversal * (self.theta - constant)
        return kl_divergence(student, teacher, self.start + self.range_ * theta.sigmoid())

    @property
    def reversal(self) -> float:
        """The factor λ of the reversed gradient."""
        return (1 - math.cos(math.pi * min(self.progress / self.ramp, 1))) / 2 if self.ramp else 1.0

    def logged(self) -> dict[str, Tensor]:
        """Return the temperature."""
        return dict(temperature=self.start + self.range_ * self.theta.detach().sigmoid())
