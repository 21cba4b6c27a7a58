"""Batches whose random augmentation depends on their number only."""
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from mmengine.dist import get_rank
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from ..random_state import preserved_cpu_generators, seed_cpu_generators
from .pipelines import transforms_of


class SeededBatch(list):
    """The indices of a batch, which seed the generators of the CPU while they are iterated over.

    A data loader loads the samples of a batch in ``[dataset[index] for index in batch]``, so the random
    numbers that a dataset draws depend on the batch's key only, and neither on the number of workers nor on
    batches before. The generators of the main process are restored after the last sample.

    Args:
        indices: Indices of the samples.
        key: Whole numbers from which the generators are seeded.
    """

    def __init__(self, indices: Sequence[Any], key: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.key = key

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:  # what a collate function draws should depend on the key, too
            seed_cpu_generators(self.key)
            yield from super().__iter__()
            return
        with preserved_cpu_generators():
            seed_cpu_generators(self.key)
            yield from super().__iter__()

    def __reduce__(self) -> tuple:
        return SeededBatch, (list(super().__iter__()), self.key)


class SeededBatchSampler(Sampler):
    """Wraps a batch sampler: batches carry the seed of their augmentation, and some can be skipped.

    The key of a batch is made of the seed of the run, the rank, the number of the pass over the data, and the
    number of the batch in it. The numbers that the wrapped sampler draws at the start of a pass depend on the
    seed and the pass. So any batch can be made again without loading those before it.

    Args:
        batch_sampler: The batch sampler.
    """

    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler
        self._start = 0, 0, 0

    def __getattr__(self, name: str) -> Any:
        if name == 'batch_sampler':  # not there yet while an object is copied
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def start_pass(self, seed: int, number: int, skip: int = 0) -> None:
        """Set what the next iteration over the batches begins with.

        Args:
            seed: Seed of the run.
            number: Number of the pass over the data.
            skip: Number of batches to leave out.
        """
        self._start = seed, number, skip

    def __iter__(self) -> Iterator[SeededBatch]:
        # When the first batch is asked for, because data loaders make iterators that they do not use.
        seed, number, skip = self._start
        self._start = seed, number + 1, 0
        with preserved_cpu_generators():
            seed_cpu_generators((seed, number))
            batches = iter(self.batch_sampler)
            first = list(islice(batches, 1))  # samplers draw their seed when the first index is asked for
        for count, batch in enumerate(chain(first, batches)):
            if count >= skip:
                yield SeededBatch(batch, (seed, number, count, get_rank()))


def seed_batches(loader: DataLoader) -> SeededBatchSampler | None:
    """Let the batches of a data loader be seeded by their numbers.

    Args:
        loader: A data loader; changed in place.

    Returns:
        SeededBatchSampler | None: The new batch sampler; ``None`` if the data loader has no batch sampler, or
            an iterable dataset, which chooses the samples itself.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return None
    if not isinstance(loader.batch_sampler, SeededBatchSampler):
        # A data loader made with a batch sampler would lack the attributes `batch_size` and `sampler`, which
        # hooks read, and it allows no assignment.
        vars(loader)['batch_sampler'] = SeededBatchSampler(loader.batch_sampler)
    return loader.batch_sampler


def caching_transforms(dataset: Any) -> Iterator[Any]:
    """Yield the transforms of a dataset that mix an image with earlier ones (CachedMosaic, CachedMixUp)."""
    for transform in transforms_of(dataset):
        if isinstance(getattr(transform, 'results_cache', None), list):
            yield transform
