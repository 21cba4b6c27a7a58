"""MLKD: Multi-level Logit Distillation (Jin et al., CVPR 2023)."""
from collections.abc import Sequence

import torch
from torch import Tensor

from ...registry import MODELS
from ...settings import NonNegativeFloat, Temperature
from .base import LogitLoss
from .kl import kl_divergence
from .tensors import at_least_float32


@MODELS.register_module()
class MLKDLoss(LogitLoss):
    r"""Compares samples, relations between samples, and relations between classes at several temperatures.

    .. math::
        \sum_\tau \frac{w_i}{N} \sum_i \tau^2 \, KL(p_i ‖ q_i)
        + \frac{w_b}{N} \| p p^T - q q^T \|_F^2 + \frac{w_c}{K} \| p^T p - q^T q \|_F^2

    with p, q the matrices ``(N, K)`` of the teacher's and the student's probabilities over τ.

    In the released code, masks of uncertain samples and classes multiply values that have been summed up
    already, so they are the constant factor 1/2, which belongs into the weight. It also trains on a second,
    strongly augmented view of every image, which is left to the data pipeline here.

    Args:
        temperatures: The values of τ.
        instance_weight: w_i, the weight of the probabilities of a sample.
        batch_weight: w_b, the weight of the relations between samples.
        class_weight: w_c, the weight of the relations between classes.
        gather: Whether samples of all processes are related to one another, not only those of each process.
    """

    is_relational = True

    def __init__(self, temperatures: Sequence[Temperature] = (2.0, 3.0, 4.0, 5.0, 6.0),
                 instance_weight: NonNegativeFloat = 1.0, batch_weight: NonNegativeFloat = 1.0,
                 class_weight: NonNegativeFloat = 1.0, gather: bool = False) -> None:
        super().__init__()
        self.temperatures = temperatures
        self.instance_weight = instance_weight
        self.batch_weight = batch_weight
        self.class_weight = class_weight
        self.gather = gather

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        student, teacher = at_least_float32(student), at_least_float32(teacher)
        total = student.sum() * 0
        for temperature in self.temperatures:
            q, p = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
            with torch.autocast(p.device.type, enabled=False):
                batch = (p @ p.T - q @ q.T).square().sum() / max(len(p), 1)
                classes = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
            instances = kl_divergence(student, teacher, temperature).sum() / max(len(p), 1)
            total = (total + self.instance_weight * instances + self.batch_weight * batch
                     + self.class_weight * classes)
        return total
