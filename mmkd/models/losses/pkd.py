"""PKD: Distillation of Object Detectors via Pearson Correlation Coefficient (Cao et al., NeurIPS 2022)."""
from collections.abc import Sequence

import torch
from torch import Tensor

from ...registry import MODELS
from ...settings import NonNegativeFloat
from .base import RelationalFeatureLoss
from .tensors import at_least_float32, check_comparable_maps, resized


def pearson_distance(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Mean over channels of ``1 - r``, with r Pearson's correlation of two feature maps.

    Equation 4 of the paper: the mean squared error of features that are standardized per channel over batch
    and positions equals ``2 (1 - r)``; this is half of it.

    Args:
        student: Student feature map ``(N, C, H, W)``.
        teacher: Teacher feature map ``(N, C, H, W)``.
        eps: Added to the standard deviation to avoid a division by zero: a constant channel is standardized
            to zeros, and so is a single value (one sample, 1x1).

    Returns:
        Tensor: A scalar, in float32 at least.
    """
    normed = []
    # A single value has no sample variance; its channel counts as constant.
    correction = min(1, student.numel() // student.shape[1] - 1)
    for feature in (at_least_float32(student), at_least_float32(teacher)):
        std, mean = torch.std_mean(feature, dim=(0, 2, 3), correction=correction, keepdim=True)
        normed.append((feature - mean) / (std + eps))
    return (normed[0] - normed[1]).square().mean() / 2


@MODELS.register_module()
class PKDLoss(RelationalFeatureLoss):
    """PKD's imitation loss, summed over levels (equation 5, with α = 6 on FPN levels).

    Maps of another height or width are resampled to the student's. The statistics of a channel are those of
    the images of one process, as in the released code. Where samples are chosen (SAKD), the statistics are
    those of every single image.

    Args:
        weight: α.
    """

    masks_single_images = True

    def __init__(self, weight: NonNegativeFloat = 6.0) -> None:
        super().__init__(weight)

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pearson_distance(student, resized(teacher, student.shape[-2:]))

    def _compare_subset(self, student: Tensor, teacher: Tensor, choice: Tensor) -> Tensor:
        teacher = resized(teacher, student.shape[-2:])
        values = [pearson_distance(s[None], t[None]) for s, t in zip(student, teacher, strict=True)]
        return (choice * torch.stack(values)).mean()
