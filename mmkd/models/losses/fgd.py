"""FGD: Focal and Global Knowledge Distillation for Detectors (Yang et al., CVPR 2022)."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import NonNegativeFloat, Temperature
from .base import FeatureLoss
from .tensors import at_least_float32, check_comparable_maps, resized


def attention_maps(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Spatial and channel attention of a map.

    .. math:: A^S = HW \, softmax_{h,w}\Big( \frac{1}{CT} \sum_c |F| \Big), \quad
              A^C = C \, softmax_c\Big( \frac{1}{HWT} \sum_{h,w} |F| \Big)

    Args:
        feature: Feature map ``(N, C, H, W)``.
        temperature: T > 0.

    Returns:
        tuple[Tensor, Tensor]: ``(N, H, W)`` and ``(N, C)``, each with mean 1.
    """
    magnitude = feature.abs()
    spatial = (magnitude.mean(dim=1).flatten(1) / temperature).softmax(dim=1) * magnitude[0, 0].numel()
    channels = (magnitude.mean(dim=(2, 3)) / temperature).softmax(dim=1) * magnitude.shape[1]
    return spatial.unflatten(1, magnitude.shape[-2:]), channels


def foreground_scale(boxes: Tensor, size: Sequence[int], image_size: Sequence[int]) -> Tensor:
    """Return 1 / (h·w) of the smallest box that covers a position, and 0 outside of all boxes.

    Boxes are rounded outward to whole positions; h and w count positions, including those outside the map.

    Args:
        boxes: ``(B, 4)``, corners x1, y1, x2, y2 in pixels.
        size: Height and width of the map.
        image_size: Height and width of the network's input, padding included, which corresponds to the map.

    Returns:
        Tensor: ``(H, W)``.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(tuple(size))
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    y_scale, x_scale = size[0] / image_size[0], size[1] / image_size[1]
    top, bottom = (y1 * y_scale).floor()[:, None], (y2 * y_scale).ceil()[:, None]
    left, right = (x1 * x_scale).floor()[:, None], (x2 * x_scale).ceil()[:, None]
    y, x = torch.arange(size[0], device=boxes.device), torch.arange(size[1], device=boxes.device)
    in_rows, in_columns = (top <= y) & (y <= bottom), (left <= x) & (x <= right)
    # An inverted box (x2 < x1) covers nothing, but must not cause a division by zero.
    area = ((bottom - top + 1) * (right - left + 1)).clamp(min=1)
    return ((in_rows / area)[:, :, None] * in_columns[:, None, :]).amax(dim=0)


class GlobalContext(nn.Module):
    r"""The block of GCNet (Cao et al., ICCV workshops 2019) that relates every position to the whole map.

    .. math:: R(F) = F + W_2 \, ReLU(LN(W_1 \sum_j softmax_j(W_k F_j) F_j))

    Its input and output have shape ``(N, C, H, W)``. It starts as the identity, because W₂ starts at zero.

    Args:
        channels: C; the hidden layer has half as many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The softmax over positions would ignore a bias.
        self.mask = nn.Conv2d(channels, 1, 1, bias=False)
        self.transform = nn.Sequential(
            nn.Linear(channels, channels // 2), nn.LayerNorm(channels // 2), nn.ReLU(),
            nn.Linear(channels // 2, channels))
        nn.init.kaiming_normal_(self.mask.weight, mode='fan_in', nonlinearity='relu')
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, feature: Tensor) -> Tensor:
        weight = self.mask(feature).flatten(1).softmax(dim=1)
        context = torch.einsum('ncp,np->nc', feature.flatten(2), weight)
        return feature + self.transform(context)[:, :, None, None]


@MODELS.register_module()
class FGDLoss(FeatureLoss):
    r"""FGD's loss, summed over levels; ground-truth boxes separate a map's foreground from its background.

    .. math:: \sum_{c,h,w} (\alpha S^{fg} + \beta S^{bg}) A_T^S A_T^C (T - f(S))^2
              + \gamma \left( \lVert A_T^S - A_S^S \rVert_1 + \lVert A_T^C - A_S^C \rVert_1 \right)
              + \lambda \sum_{c,h,w} (R_T(T) - R_S(f(S)))^2

    with the :func:`attention_maps` A, S^fg of :func:`foreground_scale`, S^bg = 1 / (number of background
    positions), and a trainable :class:`GlobalContext` R per network and level. f is the preset's connector, a
    1×1 convolution if channels differ. Maps of another height or width are resampled to the student's.

    The defaults are the released settings of RetinaNet. For Faster R-CNN, the released code has α = 5e-5,
    β = 2.5e-5, γ = 5e-5 and λ = 5e-7; for FCOS 1.6e-3, 8e-4, 8e-4 and 8e-6 at temperature 0.8. It scales
    boxes by the image without its padding, which shifts them in padded batches; here they stay in place, and
    padding is background.

    Args:
        weight: Weight of the whole loss.
        foreground: α.
        background: β.
        attention: γ.
        global_: λ.
        temperature: T of the attention.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, foreground: NonNegativeFloat = 1e-3,
                 background: NonNegativeFloat = 5e-4, attention: NonNegativeFloat = 5e-4,
                 global_: NonNegativeFloat = 5e-6, temperature: Temperature = 0.5) -> None:
        super().__init__(weight)
        self.foreground = foreground
        self.background = background
        self.attention = attention
        self.global_ = global_
        self.temperature = temperature

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)
        self.student_context = nn.ModuleList(GlobalContext(shape[0]) for shape in teacher)
        self.teacher_context = nn.ModuleList(GlobalContext(shape[0]) for shape in teacher)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        if samples is None or any('gt_instances' not in s or 'batch_input_shape' not in s for s in samples):
            raise MMKDError('FGDLoss needs the ground-truth boxes and the `batch_input_shape` of every '
                            'sample, as in the training of detectors')
        values = []
        # In half precision the sharp softmaxes over positions would be wrong, and squares overflow.
        with torch.autocast(student[0].device.type, enabled=False):
            for student_context, teacher_context, s, t in zip(
                    self.student_context, self.teacher_context, student, teacher, strict=True):
                s = at_least_float32(s)
                t = resized(at_least_float32(t), s.shape[-2:])
                focal = self._focal_value(s, t, _foreground(samples, s.shape[-2:]))
                relation = (teacher_context(t) - student_context(s)).square().sum(dim=(1, 2, 3))
                values.append(focal + self.global_ * relation)
        return values

    def _focal_value(self, student: Tensor, teacher: Tensor, foreground: Tensor) -> Tensor:
        """Return the terms of α, β and γ, ``(N,)``; ``foreground`` is from :func:`foreground_scale`."""
        t_spatial, t_channels = attention_maps(teacher, self.temperature)
        s_spatial, s_channels = attention_maps(student, self.temperature)
        background = foreground == 0
        scale = (self.foreground * foreground
                 + self.background * background / background.sum(dim=(1, 2), keepdim=True).clamp(min=1))
        error = torch.einsum('nchw,nc->nhw', (teacher - student).square(), t_channels)
        distance = (t_spatial - s_spatial).abs().sum(dim=(1, 2)) + (t_channels - s_channels).abs().sum(dim=1)
        return (scale * t_spatial * error).sum(dim=(1, 2)) + self.attention * distance


def _foreground(samples: Sequence, size: Sequence[int]) -> Tensor:
    """Return :func:`foreground_scale` of the ground truth of every sample, ``(N, H, W)``."""
    scales = []
    for sample in samples:
        boxes = sample.gt_instances.bboxes
        boxes = at_least_float32(getattr(boxes, 'tensor', boxes))  # MMDetection's BaseBoxes hold a tensor.
        scales.append(foreground_scale(boxes, size, sample.metainfo['batch_input_shape']))
    return torch.stack(scales)
