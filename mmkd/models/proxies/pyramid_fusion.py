"""Trainable layers between the frozen teacher's features and its frozen head."""
import itertools
from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ..spots import classification_heads, is_two_stage, probe, resolve_spot


class PyramidFusion(BaseModule):
    r"""Fuses every level of a pyramid with the finer one beside it.

    .. math:: x_l = f_5( f_1(F_{l-1}) + f_2(F_l) )

    f₁ is a 3×3 convolution of stride 2, f₂ 1×1, f₅ 3×3, each with batch norm and ReLU, as SHAKE's released
    code fuses the last stages of a classifier. A detector's pyramid has been fused from coarse to fine
    already, so one step suffices here; the layers are shared by all levels, as the head above them is.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f1 = _convolution(channels, 3, stride=2)
        self.f2 = _convolution(channels, 1)
        self.f5 = _convolution(channels, 3)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Fuse maps ``(N, C, H_l, W_l)``, finest first; the shapes stay."""
        fused = [self.f2(levels[0])]
        for finer, level in itertools.pairwise(levels):
            fused.append(_cropped(self.f1(finer), level) + self.f2(level))
        return [self.f5(level) for level in fused]


class RoIFusion(BaseModule):
    r"""The same for the features of boxes, which come from one level: x = f₅(f₂(F)).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f2 = _convolution(channels, 1)
        self.f5 = _convolution(channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Transform RoI features ``(R, C, h, w)``."""
        return self.f5(self.f2(features))


class StageFusion(BaseModule):
    r"""Fuses the last three stages of a classifier, as SHAKE's released code does.

    .. math:: x = f_5( f_3( f_1(F_1) + f_2(F_2) ) + f_4(F_3) )

    f₁ and f₃ are 3×3 convolutions of stride 2, f₂ and f₄ 1×1, f₅ 3×3, each with batch norm and ReLU.

    Args:
        channels: Those of F₁, F₂ and F₃.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        first, second, third = channels
        self.f1 = _convolution(first, 3, stride=2, out_channels=second)
        self.f2 = _convolution(second, 1)
        self.f3 = _convolution(second, 3, stride=2, out_channels=third)
        self.f4 = _convolution(third, 1)
        self.f5 = _convolution(third, 3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Fuse maps ``(N, C_i, H_i, W_i)`` that halve from one to the next, into one like the last."""
        first, second, third = stages
        fused = _cropped(self.f1(first), second) + self.f2(second)
        return self.f5(_cropped(self.f3(fused), third) + self.f4(third))


def build_fusion(teacher: nn.Module) -> BaseModule:
    """Build the layers that fit under a detector's classification head."""
    (args, *_) = probe(teacher, dict(seen=resolve_spot(teacher, 'cls_inputs', 'teacher')))['seen']
    if is_two_stage(teacher):
        return RoIFusion(args[0].shape[1])
    return PyramidFusion(args[0][0].shape[1])


class Adapter(BaseModule):
    """A small residual transformation of features, which starts as the identity (KD†, variant "G").

    Two 1×1 convolutions with a ReLU between them; the second starts from zero.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Transform maps ``(N, C, H, W)`` or vectors ``(N, C)``, one or several."""
        if isinstance(features, Tensor) and features.dim() == 2:
            return self(features[..., None, None]).flatten(1)
        if isinstance(features, Tensor):
            return features + self.second(self.first(features).relu())
        return [self(level) for level in features]


def build_adapter(teacher: nn.Module) -> Adapter:
    """Build an adapter that fits under a network's classification head."""
    head = classification_heads(teacher)[0]
    if not hasattr(head, 'in_channels'):
        raise MMKDError(f"An adapter needs a head that says how many channels it takes; the teacher's "
                        f'{type(head).__name__} does not.')
    return Adapter(head.in_channels)


def _convolution(channels: int, kernel: int, stride: int = 1, out_channels: int | None = None) -> ConvModule:
    return ConvModule(channels, out_channels or channels, kernel, stride=stride, padding=kernel // 2,
                      norm_cfg=dict(type='BN'))


def _cropped(features: Tensor, like: Tensor) -> Tensor:
    return features[..., :like.shape[-2], :like.shape[-1]]
