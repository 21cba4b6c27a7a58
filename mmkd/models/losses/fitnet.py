"""FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015)."""
from collections.abc import Sequence

from torch import Tensor

from ...errors import MMKDError
from ...registry import MODELS
from .base import FeatureLoss
from .tensors import at_least_float32, check_same_channels, resized


def hint_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared error between a guided feature and its hint, one value per sample.

    .. math:: mean( (teacher - student)^2 )

    Equation 3 of the paper is half the sum over the elements; the mean is the community's form, to which
    published weights belong.

    Args:
        student: Student feature ``(N, C, H, W)`` or ``(N, C)``, after the regressor r.
        teacher: Teacher feature of the same shape.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least.
    """
    return (at_least_float32(teacher) - at_least_float32(student)).square().flatten(1).mean(dim=1)


@MODELS.register_module()
class FitNetLoss(FeatureLoss):
    """FitNet's loss: the student's hint layers imitate the teacher's; see :func:`hint_error`.

    Maps of another height or width are resampled to the student's. The regressor r of the paper is a
    :class:`~mmkd.models.connectors.ConvConnector`.

    Args:
        weight: Loss weight.
    """

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_same_channels(student, teacher)
        if [len(shape) for shape in student] != [len(shape) for shape in teacher]:
            raise MMKDError('a map (N, C, H, W) cannot be compared with a vector (N, C)')

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.dim() == 4:
            teacher = resized(at_least_float32(teacher), student.shape[-2:])
        return hint_error(student, teacher)
