"""Networks, or parts of networks, that may pass knowledge from the teacher to the student."""
from abc import ABCMeta, abstractmethod

from mmengine.config import Config
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError, nearest_names, one_line
from ...registry import MODELS
from ..spots import LogitLayout
from ..step import Step
from ..teachers import Teacher


class Proxy(BaseModule, metaclass=ABCMeta):
    """A trainable network, or part of a network, whose logits teach the student.

    The spots that a proxy reads are known after :meth:`build`.
    """

    student_spots: tuple[str, ...] = ()
    """Spots to record in the student."""

    teacher_spots: tuple[str, ...] = ()
    """Spots to record in the teacher."""

    needs_teacher: bool = False
    """Whether the proxy consists of parts of a teacher."""

    teacher: Teacher
    """The teacher; known after :meth:`build` if :attr:`needs_teacher`."""

    @abstractmethod
    def build(self, student: nn.Module, teacher: Teacher | None, student_cfg: dict, layout: LogitLayout,
              task: bool) -> None:
        """Build the parts that depend on the networks.

        Args:
            student: The student network.
            teacher: The teacher of this proxy; ``None`` only if :attr:`needs_teacher` is false.
            student_cfg: The student's config.
            layout: The layout of the student's logits.
            task: Whether :meth:`forward` will be asked for the task loss.

        Raises:
            MMKDError: If the proxy does not fit these networks.
        """

    @abstractmethod
    def forward(self, step: Step, index: int, task: bool) -> tuple[list, Tensor | None]:
        """Compute the proxy's outputs in a training step.

        Args:
            step: What was recorded in this step.
            index: The index of the proxy's teacher in ``step.teacher_outputs``.
            task: Whether to compute the proxy's task loss.

        Returns:
            tuple: Head outputs, laid out like the student's and for the student's boxes; and the task loss,
            a scalar, or ``None``.
        """

    @property
    def export_obstacle(self) -> str | None:
        """Why the proxy cannot be exported as a teacher, as the end of a sentence; ``None`` if it can."""
        return 'it is not a part of the teacher'

    def export(self) -> tuple[Config, dict[str, Tensor]]:
        """Return the config and the weights of the teacher that the proxy has become.

        They are those of an ordinary detector or classifier: the teacher, with the trained part in place of
        the part that the proxy started from.

        Raises:
            MMKDError: If no ordinary network computes what the proxy computes, or the teacher's boxes would
                get worse.
        """
        if self.export_obstacle is not None:
            raise MMKDError(f'{type(self).__name__} cannot be exported as a teacher: {self.export_obstacle}.')
        return self._export()

    def _export(self) -> tuple[Config, dict[str, Tensor]]:
        """Return config and weights; called only if there is no :attr:`export_obstacle`."""
        raise NotImplementedError


def build_proxy(cfg: dict) -> Proxy:
    """Build a proxy from its config.

    Raises:
        MMKDError: If there is no such proxy, or one of its settings is wrong.
    """
    name = cfg.get('type')
    if isinstance(name, str) and MODELS.get(name) is None:
        known = [proxy.__name__ for proxy in Proxy.__subclasses__()]
        raise MMKDError(f'There is no proxy {name!r}{nearest_names(name.split(".")[-1], known)}.')
    try:
        proxy = MODELS.build(cfg)
    except (KeyError, TypeError) as error:
        raise MMKDError(f'The proxy {name!r} has a wrong setting ({one_line(error)}).') from None
    if not isinstance(proxy, Proxy):
        raise MMKDError(f'{name!r} is a {type(proxy).__name__}, not a proxy.')
    return proxy
