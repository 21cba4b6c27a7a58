"""What a distillation method offers to a distiller."""
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..step import Step


class Method(BaseModule, metaclass=ABCMeta):
    """A distillation method: what it wants to see, and the losses it makes of it.

    A method names spots; the distiller records them and calls it with what was seen. Trainable parts are
    ordinary submodules; they are saved under ``mmkd.methods.<name>``.
    """

    student_spots: tuple[str, ...] = ()
    """Spots to record in the student; known after :meth:`build`."""

    teacher_spots: tuple[str, ...] = ()
    """Spots to record in every teacher; known after :meth:`build`."""

    student_task: float = 1.0
    """Weight of the student's own loss, in the losses of all methods together a product."""

    task_losses: tuple[str, ...] = ()
    """Which of its losses stand in place of the student's own; no schedule scales them."""

    scale: float = 1.0
    """Factor of all this method's other losses; a schedule sets it."""

    active: bool = True
    """Whether the method is used at all; a schedule ends it."""

    needs_train_labels: bool = False
    """Whether the classes of the whole training set are wanted, see :meth:`set_train_labels`."""

    optimizer_settings: Mapping[str, Mapping] = {}
    """Settings of parts of this method in the optimizer, by the submodule's name: ``lr_mult``, the learning
    rate relative to the student's, and others of the optimizer."""

    first_phase_epochs: int = 0
    """Epochs at the start of training in which nothing but this method counts."""

    trains_student_first: bool = True
    """Whether the student is trained in them."""

    in_first_phase: bool = False
    """Whether training is in these epochs; a hook sets it."""

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        """Build parts that depend on the networks, and check that they fit.

        Args:
            student: The student network.
            teachers (Sequence[Teacher]): The teachers; may be empty.
            student_cfg: The student's config.

        Raises:
            MMKDError: If this method cannot work with these networks.
        """

    def set_train_labels(self, labels: Sequence[int]) -> None:
        """Learn the classes of the training set, where the method wants to know them.

        Args:
            labels: The class of every sample, in the order of ``sample_idx``.
        """

    def epoch_report(self) -> dict | None:
        """Return what there is to tell of the last epoch, as plain data; all ranks ask for it together."""

    def end_first_phase(self) -> None:
        """Freeze what the first stage trained and the rest of the training must leave alone."""

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """Return losses (names with ``loss``) and values to log, all scalars.

        Args:
            step: What is to be seen of this training step.
        """
