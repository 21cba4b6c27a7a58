"""The random numbers of a batch depend on its key only."""
import pickle
import random

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from mmkd.datasets.seeded_batches import SeededBatch, SeededBatchSampler, seed_batches
from mmkd.random_state import get_random_state
from tests.helpers.comparing import differences


def draw(batch) -> list[tuple]:
    return [(index, random.random(), np.random.rand(), torch.rand(()).item()) for index in batch]


def test_a_batch_seeds_and_restores_the_generators():
    before = get_random_state()
    drawn = draw(SeededBatch([3, 5], (1, 2, 0, 0)))
    assert not differences(before, get_random_state())
    random.random(), np.random.rand(), torch.rand(1)
    assert draw(SeededBatch([3, 5], (1, 2, 0, 0))) == drawn
    assert draw(SeededBatch([3, 5], (1, 2, 0, 1))) != drawn
    assert [index for index, *_ in drawn] == [3, 5] and drawn[0][1:] != drawn[1][1:]


def test_a_batch_on_its_way_to_a_worker():
    before = get_random_state()
    batch = pickle.loads(pickle.dumps(SeededBatch([3, 5], (1, 2, 0, 0))))
    assert not differences(before, get_random_state())
    assert isinstance(batch, SeededBatch) and batch == [3, 5] and batch.key == (1, 2, 0, 0)


def test_skipping_batches_of_a_sampler_that_draws():
    sampler = SeededBatchSampler(BatchSampler(RandomSampler(range(10)), 3, False))
    before = get_random_state()
    sampler.start_pass(7, 2)
    batches = list(sampler)
    assert not differences(before, get_random_state())
    torch.rand(1)
    sampler.start_pass(7, 2, skip=2)
    remaining = list(sampler)
    assert remaining == batches[2:] and [batch.key for batch in remaining] == [(7, 2, 2, 0), (7, 2, 3, 0)]
    assert list(sampler) != batches  # the next pass
    assert len(sampler) == 4 and sampler.batch_size == 3


def test_a_data_loader_keeps_its_attributes():
    loader = DataLoader(list(range(5)), batch_size=2)
    sampler = seed_batches(loader)
    assert seed_batches(loader) is sampler is loader.batch_sampler
    assert loader.batch_size == 2 and isinstance(loader.sampler, SequentialSampler) and len(loader) == 3
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
    assert seed_batches(DataLoader(list(range(5)), batch_size=None)) is None
