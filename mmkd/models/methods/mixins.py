"""What some methods need besides :class:`~mmkd.models.methods.Method`: one mix-in for each need."""
from collections.abc import Mapping, Sequence


class PhasedMethod:
    """Mix-in of methods that may begin with a first phase of training (AB, FSP, FT).

    In the first phase only the losses of such methods count. A
    :class:`~mmkd.engine.hooks.FirstPhaseHook` sets :attr:`in_first_phase` and calls
    :meth:`end_first_phase`.
    """

    first_phase_epochs: int = 0
    """Length of the first phase in epochs; 0 if there is none."""

    trains_student_first: bool = True
    """Whether the first phase trains the student, or only parts of the method."""

    in_first_phase: bool = False
    """Whether training is in the first phase."""

    def end_first_phase(self) -> None:
        """Freeze the parameters that only the first phase trains."""


class TrainLabelsMethod:
    """Mix-in of methods that need the classes of the whole training set (CRD).

    A :class:`~mmkd.engine.hooks.TrainLabelsHook` passes them on.
    """

    needs_train_labels: bool = False
    """Whether :meth:`set_train_labels` must be called before training."""

    def set_train_labels(self, labels: Sequence[int]) -> None:
        """Store the classes of the training set.

        Args:
            labels: The class of every sample, in the order of ``sample_idx``.
        """


class OptimizerSettings:
    """Mix-in of methods whose parts need optimizer settings that differ from the student's (SAKD)."""

    optimizer_settings: Mapping[str, Mapping] = {}
    """Settings by the name of a submodule: ``lr_mult``, the learning rate relative to the student's, and any
    setting of the optimizer, such as ``weight_decay``."""


class EpochReports:
    """Mix-in of methods that report on every epoch (SAKD).

    An :class:`~mmkd.engine.hooks.EpochReportHook` writes the reports to ``<name>_epochs.jsonl``.
    """

    counters: Sequence[str] = ()
    """Buffers that a report sums up over an epoch, on each rank separately. Checkpoints in the middle of an
    epoch include them."""

    def freeze_settled(self) -> bool:
        """Freeze what has learned enough by the reports so far; return whether this froze any parameter."""
        return False

    def epoch_report(self) -> dict | None:
        """Return the report of the last epoch; all ranks call this together.

        Returns:
            dict | None: Data that JSON can express; ``None`` if there is nothing to report.
        """
        return None


def in_first_phase(method: object) -> bool:
    """Return whether a method is in its first phase of training."""
    return isinstance(method, PhasedMethod) and method.in_first_phase
