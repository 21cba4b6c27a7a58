"""SAKD's policy, which decides for every sample and spot whether to distill."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...spots import is_classifier, probe, resolve_spot


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


def pooled(calls: Sequence, all_levels: bool) -> Tensor:
    """Return recorded features, averaged over positions, ``(N, C)``.

    Args:
        calls: The outputs of backbone and neck, as recorded at ``features``.
        all_levels: Whether the features of all levels are concatenated; otherwise only the last is used.
    """
    levels = calls[-1] if isinstance(calls[-1], (tuple, list)) else [calls[-1]]
    while isinstance(levels[-1], (tuple, list)):
        levels = levels[-1]
    means = [level.flatten(2).mean(dim=2) if level.dim() == 4 else level
             for level in (levels if all_levels else levels[-1:])]
    return torch.cat(means, dim=1)


def build_policy(student: nn.Module, teacher: nn.Module, spots: int, temperature: float,
                 same_family: bool | None) -> SpotPolicy:
    """Build the policy for two networks.

    Args:
        student: The student.
        teacher: The teacher's network.
        spots: Number of spots.
        temperature: Temperature of the Gumbel-softmax.
        same_family: Whether both networks belong to one family; ``None`` decides by their backbones.
    """
    channels = _pooled_channels(student), _pooled_channels(teacher)
    if same_family is None:  # as in the released settings, in which ResNet32x4 and ResNet32 differ
        same_family = type(student.backbone) is type(teacher.backbone) and channels[0] == channels[1]
    return SpotPolicy(sum(channels), spots, temperature, bias=10.0 if same_family else 0.0)


def _pooled_channels(model: nn.Module) -> int:
    outputs = probe(model, dict(features=resolve_spot(model, 'features', 'network')))
    return pooled(outputs['features'], not is_classifier(model)).shape[1]
