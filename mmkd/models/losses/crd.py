"""CRD: Contrastive Representation Distillation (Tian, Krishnan and Isola, ICLR 2020)."""
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, broadcast
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import separate_random_state
from ...registry import MODELS
from ...settings import NonNegativeFloat, PositiveInt, Range
from .base import FeatureLoss
from .tensors import at_least_float32


def contrast_nce(density: Tensor, num_samples: int, eps: float = 1e-7) -> Tensor:
    r"""Noise contrastive estimation: distinguish the positive from K negatives, drawn uniformly.

    .. math:: -\log \frac{p_0}{p_0 + K/M + \epsilon} - \sum_{k=1}^K \log \frac{K/M}{p_k + K/M + \epsilon}

    Args:
        density: ``(N, 1 + K)``, the model's probabilities p of the positive and of the K negatives.
        num_samples: M, the number of samples that negatives are drawn from.
        eps: ε, which adds nearly M ε to the loss, as published.

    Returns:
        Tensor: Shape ``(N,)``.
    """
    noise = (density.shape[1] - 1) / num_samples
    positive, negatives = density[:, 0], density[:, 1:]
    # log(1 + x) instead of logarithms of ratios, because rounding errors of K numbers near 1 would add up.
    return torch.log1p((noise + eps) / positive) + torch.log1p((negatives + eps) / noise).sum(dim=1)


def sample_outside(start: Tensor, length: Tensor, total: int, count: int,
                   generator: torch.Generator | None = None) -> Tensor:
    """Draw integers from 0 to ``total - 1``, uniformly and with replacement, outside of a block per row.

    Args:
        start: ``(N,)``, the first integer of every row's block.
        length: ``(N,)``, the lengths of the blocks, less than ``total``.
        total: Number of integers to draw from.
        count: Number of integers to draw per row.
        generator: Generator on the device of ``start``; by default that device's default generator.

    Returns:
        Tensor: Shape ``(N, count)``, int64.
    """
    # The remainder of such large numbers is uniform to 13 digits.
    drawn = torch.randint(2**62, (len(start), count), generator=generator, device=start.device)
    drawn %= total - length[:, None]
    return drawn + length[:, None] * (drawn >= start[:, None])


def sample_indices(samples: Sequence | None, total: int) -> list[int]:
    """Return the index of every sample in the training set.

    Raises:
        MMKDError: If a sample does not have it, or it is not in ``[0, total)``.
    """
    samples = samples or ()
    indices = [sample.sample_idx for sample in samples if getattr(sample, 'sample_idx', None) is not None]
    if not indices or len(indices) < len(samples):
        raise MMKDError("CRD needs the `sample_idx` of every sample; let the pipeline's PackInputs keep it "
                        'among its `meta_keys`')
    if not all(0 <= index < total for index in indices):
        raise MMKDError(f'a `sample_idx` is {max(indices)}, but the training set has {total} samples')
    return indices


def as_vectors(feature: Tensor) -> Tensor:
    """Average maps ``(N, C, H, W)`` to vectors ``(N, C)``, in float32 at least; keep vectors."""
    feature = at_least_float32(feature)
    return feature.mean(dim=(2, 3)) if feature.dim() == 4 else feature


@MODELS.register_module()
class CRDLoss(FeatureLoss):
    r"""Student and teacher distinguish each other's embedding of a sample from those of other samples.

    .. math:: NCE(p(s_i, t_j)) + NCE(p(t_i, s_j)), \quad p(a, b) = e^{a \cdot b / \tau} / Z

    s and t are linear embeddings of the networks' features, scaled to length 1; NCE is :func:`contrast_nce`,
    with j the sample i itself and its negatives. An embedding is compared with a memory of the embeddings of
    all M samples of the training set, which is updated with momentum after every batch. Each network has one
    level, of vectors or of maps, which are averaged.

    This is the released code's form, to which the published figures belong. The paper's critic has no Z; here
    it is estimated from the first batch such that p is 1/M on average, and fixed afterward. In contrast to
    the released code, negatives are drawn with replacement. The similarities ``(N, M)`` are computed for all
    samples, which takes less memory than gathering ``(N, 1 + K, dim)`` embeddings if M is less than 2
    million.

    Args:
        dim: Length of the embeddings.
        negatives: K, the number of negatives of a sample.
        temperature: τ; below 0.02, the exponentials would overflow.
        momentum: Weight of the old embedding in an update of the memory.
        mode: ``'exact'`` draws negatives from samples of other classes, as published; ``'any'`` from all
            other samples.
        num_samples: M; by default set by :meth:`set_train_labels`, which ``mode='exact'`` needs in any case.
        weight: Loss weight; 0.8 as published.
    """

    is_stochastic = True
    needs_train_labels = True
    memory: Tensor
    normalizers: Tensor
    order: Tensor
    block_start: Tensor
    block_length: Tensor

    def __init__(self, dim: PositiveInt = 128, negatives: PositiveInt = 16384,
                 temperature: Annotated[float, Range(at_least=0.02, at_most=1000)] = 0.07,
                 momentum: Annotated[float, Range(at_least=0, below=1)] = 0.5,
                 mode: Literal['exact', 'any'] = 'exact', num_samples: PositiveInt | None = None,
                 weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(weight)
        self.dim = dim
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.mode = mode
        self.register_buffer('memory', None)  # (2, M, dim): the student's and the teacher's embeddings
        self.register_buffer('normalizers', torch.zeros(2))  # Z of both terms; 0 before the first batch
        # All samples sorted by class; for every sample, the start of its class in that order, and its size.
        for name in ('order', 'block_start', 'block_length'):
            self.register_buffer(name, None, persistent=False)
        if num_samples is not None:
            self._make_memory(num_samples)
            if mode == 'any':
                self.set_train_labels(range(num_samples))

    def build(self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
        if len(student) != 1 or len(teacher) != 1:
            raise MMKDError(f'CRD compares one level of each network, not {len(student)} and {len(teacher)}')
        self.embeddings = nn.ModuleList(nn.Linear(shape[0], self.dim) for shape in (student[0], teacher[0]))

    def set_train_labels(self, labels: Sequence[int]) -> None:
        """Set the classes of the training set, before training and before a checkpoint is loaded.

        Args:
            labels: The class of every sample, in the order of ``sample_idx``.

        Raises:
            MMKDError: If a sample has no negatives, or the number of samples is not ``num_samples``.
        """
        classes = torch.as_tensor(labels)
        if classes.dim() != 1:
            raise MMKDError('CRD needs one class per sample')
        total = len(classes)
        if self.memory is None:
            self._make_memory(total)
        elif total != self.memory.shape[1]:
            raise MMKDError(f'CRD has a memory for {self.memory.shape[1]} samples, but the training set has '
                            f'{total}')
        if self.mode == 'any':
            classes = torch.arange(total)  # every sample is a separate class
        size = classes.bincount()
        start = size.cumsum(0) - size
        if size.max() == total:
            raise MMKDError('CRD needs negatives, but all samples of the training set are of one class')
        device = self.normalizers.device
        self.order = classes.argsort(stable=True).to(device)
        self.block_start = start[classes].to(device)
        self.block_length = size[classes].to(device)

    def _make_memory(self, total: int) -> None:
        bound = (3 / self.dim)**0.5
        with separate_random_state():
            memory = torch.empty(2, total, self.dim).uniform_(-bound, bound)
        self.memory = memory.to(self.normalizers.device)
        broadcast(self.memory)

    def draw_negatives(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return negatives ``(N, K)`` of samples ``(N,)``, both as indices in the training set."""
        start, length = self.block_start[indices], self.block_length[indices]
        return self.order[sample_outside(start, length, len(self.order), self.negatives, generator)]

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor],
               samples: Sequence | None = None) -> list[Tensor]:
        return [self._values(student[0], teacher[0], samples, student[0].new_ones(len(student[0])))]

    def masked(self, student: Sequence[Tensor], teacher: Sequence[Tensor], choices: Sequence[Tensor],
               samples: Sequence | None = None) -> Tensor:
        choice, = choices
        values = self._values(student[0], teacher[0], samples, choice)
        return self.weight * (choice * values).mean()

    def _values(self, student: Tensor, teacher: Tensor, samples: Sequence | None, choice: Tensor) -> Tensor:
        """Return the loss of every sample ``(N,)``; chosen samples (1, not 0) also update the memory."""
        if self.order is None:
            raise MMKDError('CRD does not know the training set; call `set_train_labels` with its labels')
        total, device = len(self.order), student.device
        indices = torch.tensor(sample_indices(samples, total)).to(device, non_blocking=True)
        compared = torch.cat((indices[:, None], self.draw_negatives(indices)), dim=1)
        with torch.autocast(device.type, enabled=False):
            s = F.normalize(self.embeddings[0](as_vectors(student)))
            t = F.normalize(self.embeddings[1](as_vectors(teacher)))
            student_memory, teacher_memory = self.memory
            exponentials = [((s @ teacher_memory.T).gather(1, compared) / self.temperature).exp(),
                            ((t @ student_memory.T).gather(1, compared) / self.temperature).exp()]
            normalizers = self._get_normalizers(exponentials)
            if self.training:
                self._update_memory(indices, torch.stack((s, t)).detach(), choice)
            return sum(contrast_nce(exponential / z, total)
                       for exponential, z in zip(exponentials, normalizers, strict=True))

    @torch.no_grad()
    def _get_normalizers(self, exponentials: Sequence[Tensor]) -> Tensor:
        estimate = torch.stack([exponential.mean() for exponential in exponentials]) * len(self.order)
        if self.training:
            all_reduce(estimate, op='mean')
        normalizers = torch.where(self.normalizers > 0, self.normalizers, estimate)
        if self.training:
            # A normalizer that overflowed would never be replaced. It is the same on all ranks.
            self.normalizers = torch.where(normalizers.isfinite(), normalizers, self.normalizers)
        return normalizers

    @torch.no_grad()
    def _update_memory(self, indices: Tensor, embedded: Tensor, choice: Tensor) -> None:
        # With the embeddings of all ranks, so that their memories stay the same.
        indices, choice = (torch.cat(all_gather(values)) for values in (indices, choice))
        embedded = torch.cat(all_gather(embedded), dim=1)
        # Writes to a row have no defined order on GPUs, so all of them write the last chosen embedding.
        same = (indices[:, None] == indices) & (choice > 0)
        last = torch.where(same, torch.arange(len(indices), device=indices.device), -1).amax(dim=1)
        old = self.memory[:, indices]
        rows = F.normalize(self.momentum * old + (1 - self.momentum) * embedded[:, last], dim=2)
        # A row that is not finite would never recover, and would spoil every batch that draws it.
        valid = rows.isfinite().all(dim=2, keepdim=True) & (last >= 0)[:, None]
        rows = torch.where(valid, rows, old)
        # Not in place, because backward needs the old memory.
        self.memory = self.memory.index_copy(1, indices, rows)
