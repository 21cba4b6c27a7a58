"""Hard-label distillation, as in DeiT (Touvron et al., ICML 2021)."""
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from .base import LogitLoss
from .tensors import at_least_float32


@MODELS.register_module()
class HardLabelLoss(LogitLoss):
    r"""Cross-entropy with the teacher's most likely class as the label.

    .. math:: -\log q_y, \quad y = \mathrm{argmax}_k \, t_k, \; q = softmax(s)
    """

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.cross_entropy(at_least_float32(student), teacher.argmax(dim=1), reduction='none')
