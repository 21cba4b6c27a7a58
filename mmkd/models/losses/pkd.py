"""PKD: General Distillation Framework for Object Detectors via Pearson Correlation (NeurIPS 2022)."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...registry import MODELS


def pearson_distance(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Mean over channels of ``1 - r``, with r Pearson's correlation of two feature maps.

    Equation 4 of the paper: the MSE of features standardised per channel over batch and places equals
    ``2 (1 - r)``; half of it is taken.

    Args:
        student: Feature map ``(N, C, H, W)``.
        teacher: Feature map ``(N, C, H, W)``; no gradient flows into it when it is detached.
        eps: Added to the standard deviation, so that a constant channel gives no division by zero.

    Returns:
        Tensor: A scalar, in float32 at least.
    """
    normed = []
    for feature in (student, teacher):
        if feature.dtype.itemsize < 4:
            feature = feature.float()
        std, mean = torch.std_mean(feature, dim=(0, 2, 3), keepdim=True)
        normed.append((feature - mean) / (std + eps))
    return (normed[0] - normed[1]).square().mean() / 2


@MODELS.register_module()
class PKDLoss(nn.Module):
    """PKD's imitation loss, summed over levels (equation 5: the weight α is 6 on FPN levels).

    Args:
        weight: α.
    """

    def __init__(self, weight: float = 6.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compare feature pyramids.

        Args:
            student: Maps ``(N, C, H_l, W_l)``, one per level.
            teacher: As many maps with the same channels; another height or width is resampled to the
                student's.

        Returns:
            Tensor: A scalar.
        """
        total = sum(
            pearson_distance(s, _resized(t, s.shape[-2:])) for s, t in zip(student, teacher, strict=True))
        return self.weight * total


def _resized(feature: Tensor, size: torch.Size) -> Tensor:
    if feature.shape[-2:] == size:
        return feature
    return nn.functional.interpolate(feature, size=size, mode='bilinear', align_corners=False)
