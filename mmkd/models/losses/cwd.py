"""CWD: Channel-wise Knowledge Distillation for Dense Prediction (Shu et al., ICCV 2021)."""
from collections.abc import Sequence

from torch import Tensor

from ...registry import MODELS
from ...settings import NonNegativeFloat, Temperature
from .base import FeatureLoss
from .kl import kl_divergence
from .tensors import at_least_float32, check_comparable_maps, resized


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Mean over channels of KL(teacher ‖ student), each channel a distribution over positions.

    .. math:: \frac{\tau^2}{C} \sum_{c=1}^C \sum_i p_{c,i} \log \frac{p_{c,i}}{q_{c,i}}, \quad
              p_c = softmax_i(t_{c,i} / \tau), \; q_c = softmax_i(s_{c,i} / \tau)

    Args:
        student: s, student features or logits ``(N, C, H, W)``.
        teacher: t, teacher features or logits ``(N, C, H, W)``.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(N,)``, in float32 at least.
    """
    return kl_divergence(student.flatten(2), teacher.flatten(2), temperature).mean(dim=1)


@MODELS.register_module()
class CWDLoss(FeatureLoss):
    """CWD's loss, summed over levels; see :func:`channel_divergence`.

    It does not change if a constant is added to a channel. Maps of another height or width are resampled to
    the student's. The paper uses weight 50 for feature maps, and 3 at τ = 4 for maps of logits; MMRazor's
    detectors use 10 at τ = 1 on every FPN level.

    Args:
        weight: Loss weight.
        temperature: τ.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0, temperature: Temperature = 1.0) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        check_comparable_maps(student, teacher)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        teacher = resized(at_least_float32(teacher), student.shape[-2:])
        return channel_divergence(student, teacher, self.temperature)
