"""Trainable layers that keep the shapes of features: fusion of levels or stages, and an adapter."""
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ..spots import HookPoint, classification_heads, is_two_stage, module_hooks, probe, resolve_spot


class PyramidFusion(BaseModule):
    r"""Fuses every level of a pyramid with the next finer level.

    .. math:: x_l = f_5( f_1(F_{l-1}) + f_2(F_l) )

    f₁ is a 3×3 convolution of stride 2, f₂ 1×1, f₅ 3×3, each with batch norm and ReLU, as SHAKE's released
    code fuses the last stages of a classifier. A detector's pyramid has already been fused from coarse to
    fine, so one step suffices here; all levels share these layers, as they share the head.

    Args:
        channels: The number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f1 = _convolution(channels, 3, stride=2)
        self.f2 = _convolution(channels, 1)
        self.f5 = _convolution(channels, 3)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Fuse maps ``(N, C, H_l, W_l)``, the finest first; their shapes stay."""
        fused = [self.f2(levels[0])]
        for finer, level in itertools.pairwise(levels):
            fused.append(_cropped(self.f1(finer), level) + self.f2(level))
        return [self.f5(level) for level in fused]


class RoIFusion(BaseModule):
    r"""Transforms the features of boxes, which come from one level: x = f₅(f₂(F)).

    f₂ and f₅ are those of :class:`PyramidFusion`.

    Args:
        channels: The number of channels C.
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
        channels: The numbers of channels of F₁, F₂ and F₃.
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
        """Fuse maps ``(N, C_i, H_i, W_i)``, whose sizes halve in order, into a map like the last one."""
        first, second, third = stages
        fused = _cropped(self.f1(first), second) + self.f2(second)
        return self.f5(_cropped(self.f3(fused), third) + self.f4(third))


class Adapter(BaseModule):
    """A small residual transformation of features, which starts as the identity.

    Two 1×1 convolutions with a ReLU between them; the second one starts from zero.

    Args:
        channels: The number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Transform a map ``(N, C, H, W)``, vectors ``(N, C)``, or a sequence of them."""
        if isinstance(features, Tensor) and features.dim() == 2:
            return self(features[..., None, None]).flatten(1)
        if isinstance(features, Tensor):
            return features + self.second(self.first(features).relu())
        return [self(level) for level in features]


def fused_spots(model: nn.Module, number: int = 3) -> dict[str, int]:
    """Return the spots where a classifier has the last map of each of its last resolutions.

    Args:
        model: The classifier.
        number: The number of resolutions.

    Returns:
        dict: Spot and number of channels of each map; the last one is the map that the head classifies.

    Raises:
        MMKDError: If there are fewer resolutions, or the head does not classify the last map.
    """
    part = 'backbone' if hasattr(model, 'backbone') else 'model'  # of timm
    calls: list[tuple[str, tuple[int, ...], Tensor]] = []

    def record_map(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if args and _is_map(args[0]) and _is_map(output):
            calls.append((name, args[0].shape[-2:], output))

    hooks = [(module, partial(record_map, name)) for name, module in model.named_modules()
             if name.startswith(f'{part}.')]
    with module_hooks(forward=hooks):
        (outputs, ) = probe(model, dict(outputs=HookPoint(part)))['outputs']
    names = [name for name, _, _ in calls]
    maps = {}
    for name, _, output in calls:
        size = output.shape[-2:]
        # A module that changes the resolution may first compute intermediate maps of the old resolution.
        is_intermediate = any(name.startswith(f'{outer}.') and before == size != after.shape[-2:]
                              for outer, before, after in calls)
        if names.count(name) == 1 and not is_intermediate and max(size) > 1:
            maps[size] = name, output
    last = [maps[size] for size in sorted(maps, reverse=True)[-number:]]
    # A ReLU that is not a module may follow the last map, because the fusion ends with a ReLU as well.
    classified = getattr(outputs[-1], 'shape', None)  # some transformers return several tensors
    if len(last) < number or (part == 'backbone' and classified != last[-1][1].shape):
        raise MMKDError(f'The teacher {type(model).__name__} has feature maps of {len(maps)} resolutions; '
                        f'{number} are needed to fuse them, in a convolutional network whose head classifies '
                        'the last map.')
    return {name: output.shape[1] for name, output in last}


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def build_fusion(teacher: nn.Module) -> PyramidFusion | RoIFusion:
    """Build the fusion layers that fit under a detector's classification head."""
    (args, *_) = probe(teacher, dict(inputs=resolve_spot(teacher, 'cls_inputs', 'teacher')))['inputs']
    if is_two_stage(teacher):
        return RoIFusion(args[0].shape[1])
    return PyramidFusion(args[0][0].shape[1])


def build_adapter(teacher: nn.Module) -> Adapter:
    """Build an adapter that fits under a network's classification head.

    Raises:
        MMKDError: If the head does not say how many channels it takes.
    """
    head = classification_heads(teacher)[0]
    if not hasattr(head, 'in_channels'):
        raise MMKDError('An adapter needs a head with the attribute `in_channels`, and the '
                        f"teacher's {type(head).__name__} has none.")
    return Adapter(head.in_channels)


def _convolution(channels: int, kernel: int, stride: int = 1, out_channels: int | None = None) -> ConvModule:
    return ConvModule(channels, out_channels or channels, kernel, stride=stride, padding=kernel // 2,
                      norm_cfg=dict(type='BN'))


def _cropped(features: Tensor, like: Tensor) -> Tensor:
    return features[..., :like.shape[-2], :like.shape[-1]]
