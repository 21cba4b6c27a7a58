"""With gather=True, processes have the gradients of one process with the whole batch."""
import pytest
import torch
from torch import distributed as torch_dist
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.losses import CCLoss, DISTLoss, PKTLoss, RKDLoss, SPLoss
from mmkd.models.methods import LogitDistill
from mmkd.models.reduction import gather_over_ranks
from tests.helpers.two_processes import run_in_two_processes

LOSSES = {
    'SP': lambda **settings: SPLoss(weight=10.0, **settings),
    'RKD': lambda **settings: RKDLoss(**settings),
    'PKT': lambda **settings: PKTLoss(weight=100.0, **settings),
    'CC': lambda **settings: CCLoss(dim=4, **settings),
    'CC of all pairs': lambda **settings: CCLoss(dim=4, kernel='gaussian', **settings),
}
SIZES = (4, 3)


def batch(features: int, seed: int) -> torch.Tensor:
    return torch.randn(sum(SIZES), features, generator=torch.Generator().manual_seed(seed))


INPUTS, TEACHER, CHOICES = batch(6, 0), batch(5, 1), torch.tensor([1.0, 0, 1, 1, 0, 1, 1])


def gradients(loss: nn.Module, rows: slice, masked: bool) -> list[torch.Tensor]:
    """Return the gradients of a student, and of the loss, from some rows of the batch."""
    torch.manual_seed(0)
    student = nn.Linear(6, 5)
    loss.build([(5, )], [(5, )])
    for parameter in loss.parameters():
        nn.init.normal_(parameter)
    features = [student(INPUTS[rows]).tanh()], [TEACHER[rows]]
    value = loss.masked(*features, [CHOICES[rows]]) if masked else loss(*features)
    value.backward()
    return [parameter.grad for module in (student, loss) for parameter in module.parameters()]


def logit_gradients(loss: str, gather: bool, rows: slice, masked: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    student = nn.Linear(6, 5)
    method = LogitDistill(dict(type=f'mmkd.{loss}', gather=gather))
    method._mean(student(INPUTS[rows]), TEACHER[rows], None, CHOICES[rows] if masked else None).backward()
    return [parameter.grad for parameter in student.parameters()]


def averaged(grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """Average over ranks, as DDP does."""
    for grad in grads:
        torch_dist.all_reduce(grad)
    return [grad / 2 for grad in grads]


def is_close(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(first, second, strict=True))


def worker(rank: int) -> None:
    rows = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    for masked in (False, True):
        for name, make in LOSSES.items():
            whole = gradients(make(), slice(None), masked)
            assert is_close(averaged(gradients(make(gather=True), rows, masked)), whole), name
            assert not is_close(averaged(gradients(make(), rows, masked)), whole), name
        for loss in ('DISTLoss', 'MLKDLoss'):
            whole = logit_gradients(loss, False, slice(None), masked)
            assert is_close(averaged(logit_gradients(loss, True, rows, masked)), whole), loss
            assert not is_close(averaged(logit_gradients(loss, False, rows, masked)), whole), loss
    with pytest.raises(MMKDError, match=r'the same shape on all processes, not \[\[2, 3\], \[2, 4\]\]'):
        gather_over_ranks(torch.zeros(2, 3 + rank))
    assert gather_over_ranks(torch.full((rank, 2), rank)).tolist() == [[1, 1]], 'one rank has no samples'


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_have_the_gradients_of_one():
    run_in_two_processes(worker)


def test_one_process_gathers_nothing():
    assert gather_over_ranks(INPUTS) is INPUTS
    for make in LOSSES.values():
        pairs = zip(gradients(make(gather=True), slice(None), False), gradients(make(), slice(None), False),
                    strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert DISTLoss(gather=True)(INPUTS[:, :5], TEACHER) == DISTLoss()(INPUTS[:, :5], TEACHER)
