"""DIST: Knowledge Distillation from A Stronger Teacher (Huang et al., NeurIPS 2022)."""
from torch import Tensor
from torch.nn import functional as F

from ...errors import check_weight
from ...registry import MODELS
from .base import LogitLoss
from .tensors import at_least_float32


def mean_pearson_distance(one: Tensor, two: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    """Mean of ``1 - r``, with r Pearson's correlation along a dimension of two matrices.

    Args:
        one: ``(N, K)``.
        two: ``(N, K)``.
        dim: 1 correlates rows, 0 columns.
        eps: Smallest norm of what is correlated; constant vectors have correlation 0.

    Returns:
        Tensor: A scalar.
    """
    one, two = one - one.mean(dim, keepdim=True), two - two.mean(dim, keepdim=True)
    return 1 - F.cosine_similarity(one, two, dim=dim, eps=eps).mean()


@MODELS.register_module()
class DISTLoss(LogitLoss):
    r"""Keeps how a sample ranks the classes, and how a class ranks the samples of the batch.

    .. math:: \tau^2 \left( \frac{\beta}{N} \sum_i 1 - r(p_{i\cdot}, q_{i\cdot}) +
              \frac{\gamma}{K} \sum_k 1 - r(p_{\cdot k}, q_{\cdot k}) \right)

    with r Pearson's correlation, and p, q the softmax of the teacher's and the student's logits over τ. The
    paper's equations have no τ²; the released code has. It also adds a small ε to the product of norms in r,
    where they have a smallest value here: that only matters for classes unlikely in all of the batch.

    Args:
        beta: β, of the relation between classes.
        gamma: γ, of the relation within classes; a constant for a batch of one.
        temperature: τ.
    """

    is_relational = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_weight(beta, 'beta')
        check_weight(gamma, 'gamma')
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        q, p = ((at_least_float32(logits) / self.temperature).softmax(dim=1) for logits in (student, teacher))
        inter, intra = mean_pearson_distance(q, p, dim=1), mean_pearson_distance(q, p, dim=0)
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)
