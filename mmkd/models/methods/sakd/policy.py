"""SAKD's policy, which decides for every sample and spot whether to distill."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpotPolicy(nn.Module):
    r"""Chooses spots from the last features of both networks (SAKD, Song et al., IEEE TIP 2022).

    A linear layer computes two logits per spot. A choice is sampled from them by the Gumbel-softmax; it is
    hard, 0 or 1, with the gradient of the soft choice (straight-through).

    Args:
        channels: Total number of channels of both features.
        spots: Number of spots.
        temperature: Temperature of the Gumbel-softmax; 5 in the paper.
        bias: Initial bias of the logits for distilling; 10 for networks of the same family.
    """

    def __init__(self, channels: int, spots: int, temperature: float = 5.0, bias: float = 0.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.layer = nn.Linear(channels, 2 * spots)
        with torch.no_grad():
            self.layer.bias.zero_()
            self.layer.bias[1::2] = bias

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sample choices.

        Args:
            student: The student's last features, pooled, ``(N, C_s)``; no gradient flows into them.
            teacher: The teacher's last features, pooled, ``(N, C_t)``.

        Returns:
            Tensor: 1 to distill a sample at a spot and 0 otherwise, ``(N, spots)``; float32 with gradient.
        """
        logits = self.layer(torch.cat([student, teacher], dim=1).detach().float()).unflatten(1, (-1, 2))
        return F.gumbel_softmax(logits, tau=self.temperature, hard=True)[..., 1]
