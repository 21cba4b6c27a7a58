"""Networks that are a stem, stages, and sometimes a tail, one after another."""
from collections.abc import Sequence

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from ...errors import MMKDError

KAIMING = dict(type='Kaiming', layer='Conv2d')
"""He et al.'s normal distribution (fan out, ReLU), and zero for biases."""


class Staged:
    """What a network of stages offers besides its forward pass, which is the same as

    .. code-block:: python

        x = network.stem(images)
        for name, stage in network.stages():
            x = stage(x)
        x = network.tail(x)
    """

    stage_names: Sequence[str] = ()

    img_size: int = 32
    """Height and width of the images that it is meant for; others work as well."""

    def stem(self, images: Tensor) -> Tensor:
        """Run what comes before the first stage on ``(N, 3, H, W)``."""
        raise NotImplementedError

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages in order, each with the name of the submodule that gives its output."""
        return [(name, self.get_submodule(name)) for name in self.stage_names]

    def tail(self, features: Tensor) -> Tensor:
        """Run what comes after the last stage on ``(N, C, H, W)``."""
        return features


class StagedBackbone(Staged, BaseBackbone):
    """A backbone of MMPretrain that returns the features of its stages.

    Args:
        out_indices: Which features to return: 0 is the first stage, and so on; where a network has a
            tail, the number after the last stage is what that gives.
        init_cfg: Initialization of the weights.

    Raises:
        MMKDError: If there is no such stage.
    """

    has_tail = False

    def __init__(self, out_indices: Sequence[int], init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        last = len(self.stage_names) - 1 + self.has_tail
        if not out_indices or not set(out_indices) <= set(range(last + 1)):
            raise MMKDError(f'out_indices={tuple(out_indices)} of {type(self).__name__} must be some of '
                            f'0 to {last}.')
        self.out_indices = tuple(out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a tuple of maps ``(N, C_i, H_i, W_i)`` of images ``(N, 3, H, W)``."""
        steps = [stage for _, stage in self.stages()] + [self.tail] * self.has_tail
        features, outputs = self.stem(images), []
        for index, step in enumerate(steps):
            features = step(features)
            if index in self.out_indices:
                outputs.append(features)
        return tuple(outputs)
