"""SAKD's policy: for every sample and spot, whether to distil."""
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpotPolicy(nn.Module):
    r"""Chooses spots from the last features of both networks (SAKD, IEEE TIP 2022).

    A linear layer gives two logits per spot; a choice is drawn from them by the Gumbel-softmax and is hard, 0
    or 1, with the gradient of the soft one (straight-through).

    Args:
        channels: Length of both features together.
        spots: Number of spots.
        temperature: Of the Gumbel-softmax; 5 in the paper.
        bias: What the logit of "distil" starts with; 10 for networks of the same family.
    """

    def __init__(self, channels: int, spots: int, temperature: float = 5.0, bias: float = 0.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.layer = nn.Linear(channels, 2 * spots)
        with torch.no_grad():
            self.layer.bias.zero_()
            self.layer.bias[1::2] = bias

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Choose.

        Args:
            student: Its last features, pooled, ``(N, C_s)``; no gradient flows into them.
            teacher: The teacher's, ``(N, C_t)``.

        Returns:
            Tensor: 1 for "distil" and 0 for "do not", ``(N, spots)``; float32 with gradient.
        """
        logits = self.layer(torch.cat([student, teacher], dim=1).detach().float()).unflatten(1, (-1, 2))
        return F.gumbel_softmax(logits, tau=self.temperature, hard=True)[..., 1]
