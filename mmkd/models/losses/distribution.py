"""Divergence of box edges that are predicted as distributions (LD, Zheng et al., CVPR 2022)."""
from torch import Tensor

from .kl import kl_divergence


def edge_divergence(student: Tensor, teacher: Tensor, temperature: float = 10.0) -> Tensor:
    r"""KL(teacher ‖ student) of the distributions of a box's edges, one value per box.

    .. math:: \frac{1}{4} \sum_{e \in \{l, t, r, b\}} \tau^2 \,
              KL(softmax(teacher_e / \tau) ‖ softmax(student_e / \tau))

    The distance of an edge from the box's location is one of n+1 bins (GFL: n = ``reg_max``). This is the
    mean over edges and the sum over bins; LD's released code takes the mean over bins, which is this divided
    by n+1. Computed in float32 at least.

    Args:
        student: Logits ``(M, 4(n+1))`` of the student's boxes, edge by edge.
        teacher: Logits ``(M, 4(n+1))`` of the teacher's boxes.
        temperature: τ > 0.

    Returns:
        Tensor: Shape ``(M,)``, in nats times τ².
    """
    student_edges, teacher_edges = student.unflatten(-1, (4, -1)), teacher.unflatten(-1, (4, -1))
    return kl_divergence(student_edges, teacher_edges, temperature).mean(dim=-1)
