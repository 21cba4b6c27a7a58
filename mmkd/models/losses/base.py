"""Base classes of the losses of features and of class logits."""
from collections.abc import Sequence

from torch import Tensor, nn

from ...settings import NonNegativeFloat
from ..reduction import gather_over_ranks


class FeatureLoss(nn.Module):
    """Compares the features of student and teacher at the same spots, level by level.

    A loss overrides :meth:`compare`, or :meth:`values` if its levels depend on one another. It computes in
    float32 at least. Trainable parts are ordinary submodules, created in :meth:`build` and trained by the
    student's optimizer.

    Args:
        weight: Loss weight.
    """

    is_relational: bool = False
    """Whether the loss of a sample depends on the other samples of the batch."""

    masks_single_images: bool = True
    """Whether :meth:`masked` compares every chosen sample by itself, without the other chosen samples."""

    is_stochastic: bool = False
    """Whether the loss draws random numbers, which are kept apart from those of the rest of the training."""

    needs_train_labels: bool = False
    """Whether the loss needs the classes of the whole training set, see :meth:`set_train_labels`."""

    has_first_phase: bool = False
    """Whether training has a first phase in which only :meth:`first_phase` counts."""

    first_weight: float = 1.0
    """Loss weight in the first phase."""

    trains_student_first: bool = True
    """Whether the first phase trains the student, or only parts of this loss."""

    def __init__(self, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        """Check that the features can be compared, and build the parts that depend on their shapes.

        Args:
            student: Shape of a sample's feature at every level, ``(C, H, W)`` or ``(C,)``, measured on a
                blank image and behind connectors; height and width may differ in training.
            teacher: Shapes of the teacher's features.

        Raises:
            MMKDError: If this loss cannot compare them; the message is the reason.
        """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the features of one level.

        Args:
            student: Student feature ``(N, C, H, W)`` or ``(N, C)``.
            teacher: Teacher feature, without gradient.

        Returns:
            Tensor: A value per sample ``(N,)``; a scalar if the loss :attr:`is_relational`.
        """
        raise NotImplementedError

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        """Return the values of :meth:`compare` for every level.

        Args:
            student: Student features of every level.
            teacher: Teacher features of every level.
            samples: The batch's data samples, for losses that use labels, boxes or indices.
        """
        return [self.compare(s, t) for s, t in zip(student, teacher, strict=True)]

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
                samples: Sequence | None = None) -> Tensor:
        """Return the weighted sum over levels of the mean over samples, a scalar; see :meth:`values`."""
        return self.weight * sum(value.mean() for value in self.values(student, teacher, samples))

    def masked(self, student: Sequence[Tensor], teacher: Sequence[Tensor], choices: Sequence[Tensor],
               samples: Sequence | None = None) -> Tensor:
        """Return the loss of a subset of the samples, multiplied by the subset's share of the batch.

        The values of the other samples are masked. An empty subset gives exactly 0, with gradients.

        Args:
            student: As for :meth:`values`.
            teacher: As for :meth:`values`.
            choices: For every level, 1 or 0 for each sample ``(N,)``. If values belong to pairs of levels,
                the choices of the deeper level count.
            samples: As for :meth:`values`.

        Returns:
            Tensor: A scalar.
        """
        values = self.values(student, teacher, samples)
        return self.weight * sum(
            (choice * value).mean()
            for choice, value in zip(choices[len(choices) - len(values):], values, strict=True))

    def first_phase(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss of the first phase, a scalar: as :meth:`forward`, with :attr:`first_weight`."""
        return self.first_weight * sum(value.mean() for value in self.values(student, teacher))

    def end_first_phase(self) -> None:
        """Freeze the parts that only the first phase trains.

        It is called before training if training has no first phase.
        """

    def set_train_labels(self, labels: Sequence[int]) -> None:
        """Set the classes of the training set, before training and before a checkpoint is loaded.

        Args:
            labels: The class of every sample, in the order of ``sample_idx``.
        """


class RelationalFeatureLoss(FeatureLoss):
    """Compares how the samples of a batch relate to one another in student and teacher.

    Args:
        weight: Loss weight.
        gather: Whether the batch is that of all processes together; by default, samples are related within
            the batch of each process.
    """

    is_relational = True
    masks_single_images = False

    def __init__(self, weight: NonNegativeFloat = 1.0, gather: bool = False) -> None:
        super().__init__(weight)
        self.gather = gather

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        if self.gather:
            student, teacher = ([gather_over_ranks(level) for level in levels]
                                for levels in (student, teacher))
        return super().values(student, teacher, samples)

    def masked(self, student: Sequence[Tensor], teacher: Sequence[Tensor], choices: Sequence[Tensor],
               samples: Sequence | None = None) -> Tensor:
        if self.gather:
            student, teacher, choices = ([gather_over_ranks(level) for level in levels]
                                         for levels in (student, teacher, choices))
        return self.weight * sum(self._compare_subset(s, t, choice)
                                 for s, t, choice in zip(student, teacher, choices, strict=True))

    def _compare_subset(self, student: Tensor, teacher: Tensor, choice: Tensor) -> Tensor:
        index = choice.nonzero()[:, 0]
        if not len(index):
            return student.sum() * 0
        return choice.mean() * self.compare(student[index], teacher[index])


class LogitLoss(nn.Module):
    """Compares the class logits (softmax) of student and teacher."""

    is_relational: bool = False
    """Whether the loss of a sample depends on the other samples of the batch."""

    gather: bool = False
    """Whether a relational loss is for the batch of all processes together."""

    needs_labels: bool = False
    """Whether the loss uses the true classes."""

    progress: float = 1.0
    """The fraction of the training that is done, for losses with a curriculum; set in every step."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compare logits.

        Args:
            student: Student logits ``(N, K)``.
            teacher: Teacher logits ``(N, K)``, without gradient.
            labels: True classes ``(N,)``, int64, if the loss :attr:`needs_labels`.

        Returns:
            Tensor: A value per sample ``(N,)``; a scalar if the loss :attr:`is_relational`.
        """
        raise NotImplementedError

    def logged(self) -> dict[str, Tensor]:
        """Return values to log beside the loss, scalars by name, whose names do not contain ``loss``."""
        return {}
