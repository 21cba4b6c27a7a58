"""Networks that consist of a stem, stages, and sometimes a tail."""
from collections.abc import Sequence

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from ...errors import MMKDError

KAIMING = dict(type='Kaiming', layer='Conv2d')
"""He et al.'s normal distribution (fan out, ReLU), and zero for biases."""


class Staged(nn.Module):
    """A network whose stages can be run one by one.

    Its forward pass is equivalent to

    .. code-block:: python

        x = network.stem(images)
        for name, stage in network.stages():
            x = stage(x)
        x = network.tail(x)
    """

    img_size: int = 32
    """Height and width of the images that the network is designed for; other sizes work as well."""

    @property
    def stage_names(self) -> Sequence[str]:
        """Names of the submodules whose outputs are those of the stages, in order."""
        raise NotImplementedError

    def stem(self, images: Tensor) -> Tensor:
        """Run the layers before the first stage on images ``(N, 3, H, W)``."""
        raise NotImplementedError

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stages in order, each with the name of the submodule that computes its output."""
        return [(name, self.get_submodule(name)) for name in self.stage_names]

    def tail(self, features: Tensor) -> Tensor:
        """Run the layers after the last stage on its output ``(N, C, H, W)``; by default there are none."""
        return features


class StagedBackbone(Staged, BaseBackbone):
    """A backbone for MMPretrain that returns the outputs of its stages.

    Args:
        out_indices: Indices of the outputs: 0 is the first stage, and so on; if the network has a tail, the
            index after the last stage is the tail's output.
        init_cfg: Initialization of the weights.

    Raises:
        MMKDError: If an index is out of range.
    """

    has_tail: bool = False
    """Whether there are layers after the last stage, see :meth:`tail`."""

    def __init__(self, out_indices: Sequence[int], init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        last = len(self.stage_names) - 1 + self.has_tail
        if not out_indices or not set(out_indices) <= set(range(last + 1)):
            raise MMKDError(f'out_indices={tuple(out_indices)} of {type(self).__name__} must be some of '
                            f'0 to {last}.')
        self.out_indices = tuple(out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps ``(N, C_i, H_i, W_i)`` of images ``(N, 3, H, W)``, one for each of ``out_indices``."""
        steps = [stage for _, stage in self.stages()] + [self.tail] * self.has_tail
        features, outputs = self.stem(images), []
        for index, step in enumerate(steps):
            features = step(features)
            if index in self.out_indices:
                outputs.append(features)
        return tuple(outputs)
