"""DIST: Knowledge Distillation from A Stronger Teacher (Huang et al., NeurIPS 2022)."""
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from ...settings import NonNegativeFloat, Temperature
from .base import LogitLoss
from .tensors import at_least_float32


def mean_pearson_distance(student: Tensor, teacher: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    """Mean of ``1 - r``, with r Pearson's correlation of the rows or columns of two matrices.

    Args:
        student: Student probabilities ``(N, K)``.
        teacher: Teacher probabilities ``(N, K)``.
        dim: 1 correlates rows, 0 columns.
        eps: Lower bound of the vectors' norms; constant vectors have correlation 0.

    Returns:
        Tensor: A scalar.
    """
    student = student - student.mean(dim, keepdim=True)
    teacher = teacher - teacher.mean(dim, keepdim=True)
    return 1 - F.cosine_similarity(student, teacher, dim=dim, eps=eps).mean()


@MODELS.register_module()
class DISTLoss(LogitLoss):
    r"""Preserves the relations between the classes of a sample and between the samples of a class.

    .. math:: \tau^2 \left( \frac{\beta}{N} \sum_i 1 - r(p_{i\cdot}, q_{i\cdot}) +
              \frac{\gamma}{K} \sum_k 1 - r(p_{\cdot k}, q_{\cdot k}) \right)

    with r Pearson's correlation, and p, q the softmax of the teacher's and the student's logits over τ. The
    factor τ² is from the released code; the paper's equations do not have it. The released code also adds a
    small ε to the product of norms in r, which have a lower bound here; this only matters for classes that
    are unlikely in the whole batch.

    Args:
        beta: β, weight of the relation between classes.
        gamma: γ, weight of the relation within classes, which is constant for a batch of one.
        temperature: τ.
        gather: Whether samples of all processes are related to one another, not only those of each process.
    """

    is_relational = True

    def __init__(self, beta: NonNegativeFloat = 1.0, gamma: NonNegativeFloat = 1.0,
                 temperature: Temperature = 1.0, gather: bool = False) -> None:
        super().__init__()
        self.gather = gather
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        q = (at_least_float32(student) / self.temperature).softmax(dim=1)
        p = (at_least_float32(teacher) / self.temperature).softmax(dim=1)
        inter = mean_pearson_distance(q, p, dim=1)
        intra = mean_pearson_distance(q, p, dim=0)
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)
