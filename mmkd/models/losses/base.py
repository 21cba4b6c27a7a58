"""What losses of features have in common."""
import math
import numbers
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...errors import MMKDError


class FeatureLoss(nn.Module):
    """Compares what two networks give at the same places, level by level.

    A loss overrides :meth:`compare`, or :meth:`values` where its levels depend on one another. Computed in
    float32 at least. Trainable parts are ordinary submodules, made in :meth:`build`; the student's
    optimizer trains them.

    Args:
        weight: Factor of the loss.
    """

    is_relational = False
    """Whether a sample's part of the loss depends on the other samples of the batch."""

    is_stochastic = False
    """Whether it draws random numbers; they are kept apart from those of the rest of the training."""

    needs_train_labels = False
    """Whether it wants to know the classes of the whole training set, see :meth:`set_train_labels`."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_weight(weight)
        self.weight = weight

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        """Check that features can be compared, and build parts that depend on their shapes.

        Args:
            student: Shape of a sample's feature at every level, ``(C, H, W)`` or ``(C,)``, as seen on a
                blank image; height and width may differ in training.
            teacher: The same of the teacher.

        Raises:
            MMKDError: If this loss cannot compare them, with the reason in one sentence.
        """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the features of one level.

        Args:
            student: ``(N, C, H, W)`` or ``(N, C)``.
            teacher: The same of the teacher; without gradient.

        Returns:
            Tensor: A value per sample ``(N,)``; a scalar where samples are coupled.
        """
        raise NotImplementedError

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        """Return what :meth:`compare` gives, for every level.

        Args:
            student: The features of every level.
            teacher: As many of the teacher.
            samples: The batch's data samples, for losses that look at labels, boxes or indices.
        """
        return [self.compare(s, t) for s, t in zip(student, teacher, strict=True)]

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
                samples: Sequence | None = None) -> Tensor:
        """Return the weighted sum over levels of the mean over samples, a scalar; see :meth:`values`."""
        return self.weight * sum(value.mean() for value in self.values(student, teacher, samples))

    def masked(self, student: Sequence[Tensor], teacher: Sequence[Tensor], choices: Sequence[Tensor],
               samples: Sequence | None = None) -> Tensor:
        """Return the loss over some samples only: the loss of those alone, times their share of the batch.

        Samples that do not depend on one another are weighted; from others the chosen ones are selected.
        Without any, it is exactly 0, with gradients.

        Args:
            student: As for :meth:`values`.
            teacher: As for :meth:`values`.
            choices: For every level, 1 or 0 for each sample ``(N,)``. Where values are of pairs of levels,
                the deeper level's choices count.
            samples: As for :meth:`values`.

        Returns:
            Tensor: A scalar.
        """
        if self.is_relational:
            values = [self._selected(s, t, choice)
                      for s, t, choice in zip(student, teacher, choices, strict=True)]
        else:
            values = self.values(student, teacher, samples)
            values = [(choice * value).mean()
                      for choice, value in zip(choices[len(choices) - len(values):], values, strict=True)]
        return self.weight * sum(values)

    def _selected(self, student: Tensor, teacher: Tensor, choice: Tensor) -> Tensor:
        index = choice.nonzero()[:, 0]
        if not len(index):
            return student.sum() * 0
        return choice.mean() * self.compare(student[index], teacher[index])

    has_first_phase = False
    """Whether there is a first stage of training, in which only :meth:`first_phase` counts."""

    trains_student_first = True
    """Whether the first stage trains the student, or nothing but parts of this loss."""

    def first_phase(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss of the first stage of training, a scalar; features as for :meth:`values`."""
        raise NotImplementedError

    def end_first_phase(self) -> None:
        """Freeze what the first stage trained and the second must leave alone.

        Without a first stage it is called at once, before training.
        """

    def set_train_labels(self, labels: Sequence[int]) -> None:
        """Learn the classes of the training set, before training and before a checkpoint is loaded.

        Args:
            labels: The class of every sample, in the order of ``sample_idx``.
        """


class LogitLoss(nn.Module):
    """Compares class logits of two networks (softmax)."""

    is_relational = False
    """Whether a sample's part of the loss depends on the other samples of the batch."""

    needs_labels = False
    """Whether it looks at the labels."""

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compare logits.

        Args:
            student: Logits ``(N, K)``.
            teacher: Logits ``(N, K)``; without gradient.
            labels: The true classes ``(N,)``, int64, where :attr:`needs_labels`.

        Returns:
            Tensor: A value per sample ``(N,)``; a scalar where samples are coupled.
        """
        raise NotImplementedError


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half precision as float32, and others as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def check_weight(value: float, name: str = 'weight') -> None:
    """Check that the weight of a loss is a finite number of at least 0.

    Args:
        value: What was given.
        name: What messages call it.

    Raises:
        MMKDError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        raise MMKDError(f'`{name}` must be a finite number of at least 0, not {value!r}.')


def check_same_channels(student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
    """Check that features have the same number of channels at every level.

    Raises:
        MMKDError: If they do not.
    """
    own, other = [shape[0] for shape in student], [shape[0] for shape in teacher]
    if own != other:
        raise MMKDError(f'the student has channels {own}, the teacher {other}; give a `connector`, such as '
                        "dict(type='mmkd.ConvConnector')")


def check_maps(*networks: Sequence[tuple[int, ...]]) -> None:
    """Check that features are maps ``(C, H, W)``.

    Raises:
        MMKDError: If one is not.
    """
    if any(len(shape) != 3 for shapes in networks for shape in shapes):
        raise MMKDError('feature maps (N, C, H, W) are needed')


def resized(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map ``(N, C, H, W)`` bilinearly resampled to a height and width, if it has others."""
    if tuple(feature.shape[-2:]) == tuple(size):
        return feature
    return nn.functional.interpolate(feature, size=tuple(size), mode='bilinear', align_corners=False)


def pooled_alike(one: Tensor, other: Tensor,
                 pool: Callable = nn.functional.adaptive_avg_pool2d) -> tuple[Tensor, Tensor]:
    """Return two maps ``(N, C, H, W)``, in float32 at least, of which the larger is pooled to the smaller."""
    size = tuple(min(sides) for sides in zip(one.shape[-2:], other.shape[-2:], strict=True))
    one, other = at_least_float32(one), at_least_float32(other)
    return (one if one.shape[-2:] == size else pool(one, size),
            other if other.shape[-2:] == size else pool(other, size))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a batch has one value per channel, without variance.

    That is a map of 1x1, or a pooled feature, in a batch of one image.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                                        eps=self.eps)
