"""What a distillation method offers to a distiller."""
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping

from mmengine.model import BaseModule
from torch import Tensor, nn


class Method(BaseModule, metaclass=ABCMeta):
    """A distillation method: what it wants to see, and the losses it makes of it.

    A method names spots; the distiller records them and calls it with what was seen. Trainable parts are
    ordinary submodules; they are saved under ``mmkd.methods.<name>``.
    """

    student_spots: tuple[str, ...] = ()
    """Spots to record in the student."""

    teacher_spots: tuple[str, ...] = ()
    """Spots to record in the teacher."""

    def connect(self, student: nn.Module, teacher, student_cfg: dict) -> None:
        """Build parts that depend on the two networks, and check that they fit.

        Args:
            student: The student network.
            teacher (Teacher): The teacher.
            student_cfg: The student's config.

        Raises:
            MMKDError: If this method cannot work with this pair.
        """

    @abstractmethod
    def forward(self, student: Mapping[str, list], teacher: Mapping[str, list]) -> dict[str, Tensor]:
        """Return losses (names with ``loss``) and values to log, all scalars.

        Args:
            student: By spot, the list of what the student's calls gave.
            teacher: The same for the teacher; without gradient.
        """
