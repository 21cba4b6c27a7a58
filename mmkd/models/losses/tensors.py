"""Tensor operations and shape checks that several losses share."""
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...errors import MMKDError


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; leave other dtypes unchanged."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def check_same_channels(student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
    """Check that features have the same number of channels at every level.

    Args:
        student: Shape of a sample's student feature at every level, ``(C, H, W)`` or ``(C,)``.
        teacher: Shape of a sample's teacher feature at every level.

    Raises:
        MMKDError: If they do not.
    """
    student_channels = [shape[0] for shape in student]
    teacher_channels = [shape[0] for shape in teacher]
    if student_channels != teacher_channels:
        raise MMKDError(f'the student has channels {student_channels}, the teacher {teacher_channels}; '
                        "give a `connector`, such as dict(type='mmkd.ConvConnector')")


def check_maps(*networks: Sequence[tuple[int, ...]]) -> None:
    """Check that all features are maps ``(C, H, W)``.

    Args:
        *networks: For every network, the shape of a sample's feature at every level.

    Raises:
        MMKDError: If a feature is not a map.
    """
    if any(len(shape) != 3 for shapes in networks for shape in shapes):
        raise MMKDError('feature maps (N, C, H, W) are needed')


def check_comparable_maps(student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
    """Check that all features are maps, with the same number of channels at every level.

    Args:
        student: Shape of a sample's student feature at every level.
        teacher: Shape of a sample's teacher feature at every level.

    Raises:
        MMKDError: If they are not.
    """
    check_maps(student, teacher)
    check_same_channels(student, teacher)


def resized(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Resample a map ``(N, C, H, W)`` bilinearly to a height and width, unless it already has them."""
    if tuple(feature.shape[-2:]) == tuple(size):
        return feature
    return nn.functional.interpolate(feature, size=tuple(size), mode='bilinear', align_corners=False)


def pooled_alike(first: Tensor, second: Tensor,
                 pool: Callable = nn.functional.adaptive_avg_pool2d) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps to the height and width of the smaller.

    Args:
        first: Feature map ``(N, C, H, W)``.
        second: Feature map ``(N, C', H', W')``.
        pool: Adaptive pooling, called with a map and a size.

    Returns:
        tuple[Tensor, Tensor]: Both maps with the smaller height and the smaller width, in float32 at least.
    """
    size = tuple(min(sides) for sides in zip(first.shape[-2:], second.shape[-2:], strict=True))
    first, second = at_least_float32(first), at_least_float32(second)
    return (first if first.shape[-2:] == size else pool(first, size),
            second if second.shape[-2:] == size else pool(second, size))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics if a batch has a single value per channel.

    That is a 1x1 map or a pooled feature in a batch of one image, which has no variance.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                                        eps=self.eps)
