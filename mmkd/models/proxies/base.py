"""What may stand between teacher and student."""
from abc import ABCMeta, abstractmethod

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError, nearest_names, one_line
from ...registry import MODELS
from ..spots import LogitLayout
from ..step import Step


class Proxy(BaseModule, metaclass=ABCMeta):
    """A trainable network, or part of one, whose logits teach the student.

    What a proxy needs to see is known after :meth:`build`.
    """

    student_spots: tuple[str, ...] = ()
    """Spots to record in the student."""

    teacher_spots: tuple[str, ...] = ()
    """Spots to record in the teacher."""

    needs_teacher: bool = False
    """Whether it is made of a teacher's parts."""

    @abstractmethod
    def build(self, student: nn.Module, teacher, student_cfg: dict, layout: LogitLayout,
                task: bool) -> None:
        """Build what depends on the networks.

        Args:
            student: The student network.
            teacher (Teacher | None): The teacher that it stands before.
            student_cfg: The student's config.
            layout: How the student's logits are laid out.
            task: Whether :meth:`forward` will be asked for the task loss.

        Raises:
            MMKDError: If it cannot stand between these two.
        """

    @abstractmethod
    def forward(self, step: Step, index: int, task: bool) -> tuple[list, Tensor | None]:
        """Look at a training step.

        Args:
            step: What is to be seen of it.
            index: Which of the teachers it stands before.
            task: Whether to compute its own task loss.

        Returns:
            tuple: Its head outputs, laid out like the student's and on the student's boxes; and its task
            loss, a scalar, or ``None``.
        """


def build_proxy(cfg: dict) -> Proxy:
    """Build a proxy from its config.

    Raises:
        MMKDError: If there is no such proxy, or it has a wrong setting.
    """
    kind = cfg.get('type')
    if isinstance(kind, str) and MODELS.get(kind) is None:
        known = [one.__name__ for one in Proxy.__subclasses__()]
        raise MMKDError(f'There is no proxy {kind!r}{nearest_names(kind.split(".")[-1], known)}.')
    try:
        proxy = MODELS.build(cfg)
    except (KeyError, TypeError) as error:
        raise MMKDError(f'The proxy {kind!r} has a wrong setting ({one_line(error)}).') from None
    if not isinstance(proxy, Proxy):
        raise MMKDError(f'{kind!r} is a {type(proxy).__name__}, not a proxy.')
    return proxy
