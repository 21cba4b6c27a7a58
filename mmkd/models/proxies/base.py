"""Networks, or parts of networks, that may pass knowledge from the teacher to the student."""
from collections.abc import Sequence
from typing import Literal

from mmengine.config import Config
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import build_checked
from ..spots import LogitLayout
from ..step import Step
from ..teachers import Teacher
from .heads import classification_loss


class Proxy(BaseModule):
    """A trainable network, or part of a network, whose logits teach the student.

    A proxy overrides :meth:`build` and :meth:`outputs`. The spots it reads are known after :meth:`build`.
    """

    student_spots: tuple[str, ...] = ()
    """Spots to record in the student."""

    teacher_spots: tuple[str, ...] = ()
    """Spots to record in the teacher."""

    needs_teacher: bool = False
    """Whether the proxy consists of parts of a teacher."""

    init: str = 'random'
    """The initial weights: ``'random'``, or ``'teacher'`` for the teacher's."""

    predicts_for: Literal['student', 'teacher', 'itself'] = 'itself'
    """Query-based detectors: whose queries the proxy classifies; known after :meth:`build`."""

    answers_teacher: bool = False
    """Query-based detectors: whether a proxy that has queries answers the teacher's instead, see
    :class:`~mmkd.models.spots.shared_queries.SharedQueries`; set before :meth:`build`."""

    layout: LogitLayout
    """The layout of the logits; known after :meth:`build`."""

    teacher: Teacher
    """The teacher, if there is one; known after :meth:`build`."""

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
        self.layout = layout
        if teacher is not None:
            self.teacher = teacher
        if task and layout.of_boxes:
            self.student_spots = ('cls_targets', )

    @property
    def starts_untrained(self) -> bool:
        """Whether the proxy knows nothing at the start of the training."""
        return self.init == 'random'

    def init_weights(self) -> None:
        """Initialize random weights; weights of the teacher stay."""
        if self.init == 'random':
            super().init_weights()

    def forward(self, step: Step, index: int, task: bool) -> tuple[Sequence, Tensor | None]:
        """Compute the proxy's outputs in a training step.

        Args:
            step: What was recorded in this step.
            index: The index of the proxy's teacher in ``step.teacher_outputs``.
            task: Whether to compute the proxy's task loss.

        Returns:
            tuple: Head outputs, laid out like the student's and for the student's boxes; and the task loss,
            a scalar, or ``None``.
        """
        outputs = self.outputs(step, index)
        return outputs, classification_loss(self.layout, step, outputs) if task else None

    def outputs(self, step: Step, index: int) -> Sequence:
        """Return the head outputs; see :meth:`forward`."""
        raise NotImplementedError

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
        config = Config(self.teacher.cfg.to_dict())
        weights = {name: value.clone() for name, value in self.teacher.model.state_dict().items()}
        self.replace_weights(config, weights)
        return config, weights

    def replace_weights(self, config: Config, weights: dict[str, Tensor]) -> None:
        """Put the trained part into the config and the weights of the teacher; see :meth:`export`."""
        raise NotImplementedError


def build_proxy(cfg: dict) -> Proxy:
    """Build a proxy from its config; see :func:`~mmkd.registry.build_checked`."""
    return build_checked(cfg, Proxy, 'proxy', 'proxy')
