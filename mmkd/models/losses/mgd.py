"""MGD: Masked Generative Distillation (Yang et al., ECCV 2022)."""
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ...settings import Fraction, NonNegativeFloat
from .base import FeatureLoss
from .tensors import at_least_float32, check_comparable_maps, resized


def random_mask(feature: Tensor, mask_ratio: float,
                mask: Literal['positions', 'channels'] = 'positions') -> Tensor:
    """Draw what to keep of a feature map.

    Args:
        feature: ``(N, C, H, W)``.
        mask_ratio: The probability of being masked.
        mask: What is masked.

    Returns:
        Tensor: ``(N, 1, H, W)``, or ``(N, C, 1, 1)`` for channels; false where the map is masked.
    """
    n, c, h, w = feature.shape
    shape = (n, 1, h, w) if mask == 'positions' else (n, c, 1, 1)
    return torch.rand(shape, device=feature.device) >= mask_ratio


@MODELS.register_module()
class MGDLoss(FeatureLoss):
    r"""MGD's loss: the student's map, masked at random, generates the teacher's whole map.

    .. math:: \sum_{c,h,w} \left( T - G(M \cdot f_{align}(S)) \right)^2, \quad
              G(x) = W_2 \, ReLU(W_1 x)

    with 3×3 convolutions W, and M = 0 at the masked positions, the same for all channels, or in the masked
    channels, the same for all positions; summed over levels.
    There is a G for every level. f_align is the preset's connector, a 1×1 convolution if channels differ.
    Maps of another height or width are resampled to the student's.

    Released settings: weight 2e-5 and ratio 0.65 for one-stage detectors (the defaults), 5e-7 and 0.45 for
    two-stage ones, on every FPN level; 7e-5 and 0.15 with masked channels for classifiers, at the last map.
    The preset :class:`~mmkd.models.methods.zoo.MGD` chooses them by the kind of the student.

    Args:
        weight: α.
        mask_ratio: λ, the ratio of what is masked, from 0 to 1.
        mask: What is masked.
    """

    is_stochastic = True

    def __init__(self, weight: NonNegativeFloat = 2e-5, mask_ratio: Fraction = 0.65,
                 mask: Literal['positions', 'channels'] = 'positions') -> None:
        super().__init__(weight)
        self.mask_ratio = mask_ratio
        self.mask = mask

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)
        self.generation = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1))
            for c, *_ in teacher)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        values = []
        for generation, s, t in zip(self.generation, student, teacher, strict=True):
            generated = generation(at_least_float32(s) * random_mask(s, self.mask_ratio, self.mask))
            target = resized(at_least_float32(t), s.shape[-2:])
            values.append((generated - target).square().sum(dim=(1, 2, 3)))
        return values
