"""Paying More Attention to Attention: Attention Transfer (Zagoruyko and Komodakis, ICLR 2017)."""
from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from ...settings import NonNegativeFloat, Range
from .base import FeatureLoss
from .tensors import at_least_float32, check_maps, pooled_alike


def attention(feature: Tensor, p: float = 2) -> Tensor:
    """Spatial attention: the mean over channels of ``|f|^p``, as a vector of length 1.

    Args:
        feature: Feature map ``(N, C, H, W)``.
        p: Power of the activations.

    Returns:
        Tensor: Shape ``(N, H * W)``, in float32 at least; a map of zeros gives zeros.
    """
    return F.normalize(at_least_float32(feature).abs().pow(p).mean(dim=1).flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor, p: float = 2, form: str = 'mean') -> Tensor:
    r"""Distance of the attention q of two feature maps, one value per sample.

    .. math:: mean( (q_s - q_t)^2 ) \quad \text{or} \quad \|q_s - q_t\|_2

    The second form is equation 2 of the paper; the first form, a mean over positions, is used by the authors'
    released code and by the community.

    Args:
        student: Student feature map ``(N, C, H, W)``.
        teacher: Teacher feature map ``(N, C', H, W)``.
        p: Power of the activations.
        form: ``'mean'`` or ``'paper'``.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least.
    """
    difference = attention(student, p) - attention(teacher, p)
    return difference.norm(dim=1) if form == 'paper' else difference.square().mean(dim=1)


@MODELS.register_module()
class ATLoss(FeatureLoss):
    """Attention transfer, summed over levels; see :func:`attention_distance`.

    If heights or widths differ, the larger map is average pooled to the size of the smaller.

    Args:
        weight: β/2 in the paper; its value depends on the form.
        p: Power of the activations, from 1 to 8. With a lower power the gradient of a feature of 0 would be
            infinite, and with a higher power usual features overflow.
        form: ``'mean'`` over positions (released code), or ``'paper'``.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, p: Annotated[float, Range(at_least=1, at_most=8)] = 2,
                 form: Literal['mean', 'paper'] = 'mean') -> None:
        super().__init__(weight)
        self.p = p
        self.form = form

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_maps(student, teacher)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return attention_distance(*pooled_alike(student, teacher), self.p, self.form)
