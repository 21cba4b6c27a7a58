"""The mean over ranks, in one process and in two."""

import pytest
import torch

from mmkd.models.reduction import mean_over_ranks
from tests.helpers.two_processes import run_in_two_processes


def test_one_process():
    total = torch.tensor(3.0)
    mean = mean_over_ranks(total)
    assert mean == 3 and mean is not total
    assert mean_over_ranks(torch.tensor(0.0)).item() == pytest.approx(1e-6)
    assert mean_over_ranks(torch.tensor(0.0), minimum=1.0) == 1


def worker(rank: int) -> None:
    total = torch.tensor(float(rank + 1))
    assert mean_over_ranks(total) == 1.5
    assert total == rank + 1, 'the argument stays as it is'


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes():
    run_in_two_processes(worker)
