"""FT: Paraphrasing Complex Network: Network Compression via Factor Transfer.

Jangho Kim, SeongUk Park and Nojun Kwak, NeurIPS 2018.
"""
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from mmengine.dist import all_reduce_params
from torch import Tensor, nn
from torch.nn import functional as F

from ...registry import MODELS
from ...settings import NonNegativeFloat, Range
from .base import FeatureLoss
from .tensors import BatchNorm, at_least_float32, check_maps, pooled_alike


def factor_distance(student: Tensor, teacher: Tensor, p: int = 1, collapse: bool = True) -> Tensor:
    r"""Distance of normalized factors, one value per sample.

    .. math:: \left\lVert \frac{F_T}{\lVert F_T \rVert_2} - \frac{F_S}{\lVert F_S \rVert_2} \right\rVert_p

    For p = 1 it is the mean over entries instead of their sum, as in RepDistiller.

    Args:
        student: F_S, factors ``(N, C, H, W)``.
        teacher: F_T, factors ``(N, C, H, W)``; the larger of the two maps is average pooled to the size of
            the smaller.
        p: Order of the norm.
        collapse: Whether factors are reduced to their mean square over channels ``(N, H, W)`` first, as in
            RepDistiller; the paper normalizes and compares whole factors.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least.
    """
    rows = []
    for factor in pooled_alike(student, teacher):
        row = (factor.square().mean(1) if collapse else factor).flatten(1)
        norm = torch.linalg.vector_norm(row, dim=1, keepdim=True)
        # A row of zeros stays zero, without gradient.
        rows.append(row / norm.masked_fill(norm < 1e-12, math.inf))
    difference = rows[0] - rows[1]
    return difference.abs().mean(1) if p == 1 else torch.linalg.vector_norm(difference, p, dim=1)


def convolutions(layer: type[nn.Module], channels: Sequence[int], use_bn: bool) -> nn.Sequential:
    """Stack 3x3 (transposed) convolutions, each with a leaky ReLU, through the given numbers of channels."""
    layers = []
    for before, after in pairwise(channels):
        layers += [layer(before, after, 3, padding=1), *[BatchNorm(after)] * use_bn, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


@MODELS.register_module()
class FTLoss(FeatureLoss):
    r"""Factor transfer: the student's translator imitates the factors of the teacher's paraphraser.

    .. math:: \frac{w}{N} \sum_n d(E(T), R(S)) \qquad \text{first phase: } \lVert T - D(E(T)) \rVert_2^2

    with d :func:`factor_distance`. The paraphraser is an encoder E of three convolutions and a decoder D of
    three transposed convolutions; the translator R has the layers of E. The first phase trains only the
    paraphraser, by the mean squared error without w; then it is frozen, including its batch norms.

    Args:
        weight: w.
        k: Number of channels of the factors, relative to the teacher's.
        p: Order of the norm in d, 1 or 2.
        collapse: Whether to reduce the channels before comparing factors, as in RepDistiller, to which the
            usual weight of 200 belongs; the paper compares whole factors.
        use_bn: Whether the paraphraser has batch norms; the translator always has them, as in RepDistiller.
    """

    has_first_phase = True
    trains_student_first = False

    def __init__(self, weight: NonNegativeFloat = 1.0,
                 k: Annotated[float, Range(above=0, at_most=8)] = 0.5,
                 p: Annotated[int, Range(at_least=1, at_most=2)] = 1, collapse: bool = True,
                 use_bn: bool = False) -> None:
        super().__init__(weight)
        self.k = k
        self.p = p
        self.collapse = collapse
        self.use_bn = use_bn
        self.encoders = nn.ModuleList()
        self.decoders = nn.ModuleList()

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_maps(student, teacher)
        channels = [(s[0], t[0], max(1, int(self.k * t[0]))) for s, t in zip(student, teacher, strict=True)]
        self.encoders = nn.ModuleList(
            convolutions(nn.Conv2d, (t, t, f, f), self.use_bn) for _, t, f in channels)
        self.decoders = nn.ModuleList(
            convolutions(nn.ConvTranspose2d, (f, f, t, t), self.use_bn) for _, t, f in channels)
        self.translators = nn.ModuleList(
            convolutions(nn.Conv2d, (s, s, f, f), True) for s, _, f in channels)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        self.encoders.eval()
        values = []
        for s, t, translator, encoder in zip(student, teacher, self.translators, self.encoders, strict=True):
            with torch.no_grad():
                factor = encoder(at_least_float32(t))
            values.append(factor_distance(translator(at_least_float32(s)), factor, self.p, self.collapse))
        return values

    def end_first_phase(self) -> None:
        self.encoders.requires_grad_(False)
        self.decoders.requires_grad_(False)

    def first_phase(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        # `values` leaves the encoders in eval mode.
        self.encoders.train(self.training)
        losses = []
        for t, encoder, decoder in zip(teacher, self.encoders, self.decoders, strict=True):
            t = at_least_float32(t)
            losses.append(F.mse_loss(at_least_float32(decoder(encoder(t))), t))
        if self.training:
            # The factors depend on the running statistics, which must not differ between ranks.
            statistics = [buffer for buffer in self.encoders.buffers() if buffer.is_floating_point()]
            all_reduce_params(statistics, op='mean')
        return sum(losses)
