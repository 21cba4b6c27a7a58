"""The interface between a distillation method and the distiller."""
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ...settings import Fraction, PositiveFloat, check_setting
from ..step import Step
from ..teachers import Teacher

COMMON_SETTINGS: Mapping[str, Any] = dict(
    warmup=Fraction | None, balance=Literal['gradient', 'none'] | None, share=PositiveFloat)
"""Settings that the config of every method may have, with their types; see :class:`Method`."""


class Method(BaseModule, metaclass=ABCMeta):
    """A distillation method: the spots it reads and the losses it computes from them.

    A method has four members: :attr:`student_spots`, :attr:`teacher_spots`, :meth:`build` and
    :meth:`forward`. The distiller records the spots in every training step and calls the method with what it
    recorded. Trainable parts are ordinary submodules; they are saved under ``mmkd.methods.<name>``. Methods
    with further needs, such as a first phase of training, derive from the classes in
    :mod:`~mmkd.models.methods.mixins` as well.

    The config of every method may also have the settings :attr:`warmup`, :attr:`balance` and :attr:`share`.
    The other attributes are factors by which the distiller scales the losses, see
    :func:`~mmkd.models.distillers.weighting.weighted_losses`.
    """

    warmup: float | None = None
    """Setting: the fraction of the training during which the factor of the losses rises linearly from 0 to 1;
    ``None`` for the method's own default, which :meth:`build` sets."""

    balance: str | None = None
    """Setting: ``'gradient'`` replaces the weight of the method by its :attr:`share`, ``'none'`` leaves the
    weight as it is; ``None`` for the default of the distiller or of the method."""

    share: float = 1.0
    """Setting: how large the gradient of the method is, relative to that of the task, if it is balanced."""

    student_spots: tuple[str, ...] = ()
    """Spots to record in the student; known after :meth:`build`."""

    teacher_spots: tuple[str, ...] = ()
    """Spots to record in every teacher; known after :meth:`build`."""

    student_task: float = 1.0
    """Factor of the student's task losses; the factors of all methods are multiplied."""

    task_losses: tuple[str, ...] = ()
    """Names of this method's losses that replace the student's task losses; schedules do not scale them."""

    proxy_losses: tuple[str, ...] = ()
    """Names of this method's losses by which a proxy or a policy learns; schedules do not scale them."""

    imitation_losses: tuple[str, ...] = ()
    """Names of those :attr:`proxy_losses` by which a proxy imitates its teacher; the balance scales them."""

    scale: float = 1.0
    """Factor of all other losses of this method; a schedule sets it."""

    warmup_factor: float = 1.0
    """A second factor of the same losses; the warm-up sets it."""

    progress: float = 1.0
    """The fraction of the training that is done, for methods with a curriculum; a hook sets it."""

    active: bool = True
    """Whether the method is still in use; a schedule can end it."""

    takes_choices: bool = False
    """Whether :meth:`forward` takes a second argument, ``choices``: which images to distill at every spot.
    SAKD can be on top of such methods."""

    output_spots: tuple[str, ...] = ()
    """Outputs of the network for which :attr:`takes_choices` methods take choices, ``'logits'`` and
    ``'boxes'``, in their order; known after :meth:`build`."""

    def set_common(self, settings: Mapping[str, Any]) -> None:
        """Set some of :data:`COMMON_SETTINGS`.

        Args:
            settings: Values by name.

        Raises:
            SettingError: If a value is not of the type, or not in the range, of its setting.
        """
        for key, value in settings.items():
            check_setting(type(self).__name__, key, value, COMMON_SETTINGS[key])
            setattr(self, key, value)

    @property
    def per_image_obstacle(self) -> str | None:
        """Why the loss of a single image of a detector cannot be given, or ``None`` if it can."""
        return None

    @property
    def is_balanced(self) -> bool:
        """Whether the weight of the method is replaced by its :attr:`share`."""
        return self.balance == 'gradient'

    def is_balanced_loss(self, name: str) -> bool:
        """Whether a balance scales a value of this method: a loss by which nothing learns from labels."""
        learns_from_labels = name in self.task_losses or (
            name in self.proxy_losses and name not in self.imitation_losses)
        return 'loss' in name and not learns_from_labels

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        """Build the parts that depend on the networks, and check that the networks fit.

        Args:
            student: The student network.
            teachers: The teachers; empty if the config has none.
            student_cfg: The student's model config.

        Raises:
            MMKDError: If the method cannot work with these networks.
        """

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of a training step.

        Args:
            step: The outputs that were recorded in the training step.

        Returns:
            dict: Losses, whose names contain ``loss``, and other values to log; all scalars.
        """


def mean_over_teachers(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average the losses of several teachers.

    Args:
        losses: For every teacher, the same losses by name.
    """
    return {name: sum(of_teacher[name] / len(losses) for of_teacher in losses) for name in losses[0]}


def check_teachers(method: str, teachers: Sequence[Teacher]) -> None:
    """Check that there is a teacher.

    Args:
        method: The name of the method that needs a teacher.
        teachers: The teachers.

    Raises:
        MMKDError: If there is none.
    """
    if not teachers:
        raise MMKDError(f'{method} learns from a teacher: give `teacher` a config and a checkpoint.')
