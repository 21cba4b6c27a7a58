"""What losses measure during training is the same in all processes."""

import pytest
import torch
from torch import distributed as torch_dist

from mmkd.models.losses import CRDLoss, FTLoss, OFDLoss
from tests.helpers.two_processes import run_in_two_processes
from tests.test_models.test_losses.test_crd import LABELS, at

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STUDENT, TEACHER = (3, 4, 4), (5, 4, 4)


def batch(seed: int, *shape: int, size: int = 3) -> torch.Tensor:
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(seed))


def check_same(value: torch.Tensor) -> None:
    both = [torch.empty_like(value) for _ in range(2)]
    torch_dist.all_gather(both, value)
    assert torch.equal(*both)


def check_margins(rank: int) -> None:
    loss, together = OFDLoss(), OFDLoss()
    for one in (loss, together):
        one.build([TEACHER], [TEACHER])
    for step in range(3):
        # Other sizes, and a channel that is negative in one process only.
        parts = [batch(10 * step + other, *TEACHER, size=2 + other) for other in range(2)]
        parts[0][:, 0].abs_()
        student = batch(step, *TEACHER, size=2 + rank)
        choices = [torch.full((len(student), ), float(rank))]
        loss.masked([student], [parts[rank]], choices) if step else loss([student], [parts[rank]])
        check_same(loss.margins[0].mean)
        check_same(loss.margins[0].rate)
        whole = torch.cat(parts)
        negative = [whole[:, channel][whole[:, channel] < 0].mean() for channel in range(TEACHER[0])]
        together.margins[0].mean.lerp_(torch.stack(negative), 1 / (step + 1))
        torch.testing.assert_close(loss.margins[0].mean, together.margins[0].mean)


def check_paraphraser(rank: int) -> None:
    torch.manual_seed(0)
    loss = FTLoss(use_bn=True)
    loss.build([STUDENT], [TEACHER])
    norm = loss.encoders[0][1]
    for step in range(2):
        inputs = []
        hook = norm.register_forward_hook(
            lambda module, args, output, inputs=inputs: inputs.append(args[0].detach()))
        before = norm.running_mean.clone()
        # Also the backward pass must not need tensors that were changed in place.
        loss.first_phase([batch(0, *STUDENT)], [batch(10 * step + rank, *TEACHER)]).backward()
        hook.remove()
        mean = inputs[0].mean(dim=(0, 2, 3))
        torch_dist.all_reduce(mean)
        torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * mean / 2)
        for buffer in loss.encoders.buffers():
            check_same(buffer)
    state = [buffer.clone() for buffer in loss.encoders.buffers()]
    loss.eval().first_phase([batch(0, *STUDENT)], [batch(rank, *TEACHER)])
    loss.train()([batch(0, *STUDENT)], [batch(rank, *TEACHER)])
    assert all(torch.equal(*pair) for pair in zip(state, loss.encoders.buffers(), strict=True))


def check_memory(rank: int) -> None:
    torch.manual_seed(0)
    loss = CRDLoss(dim=4, negatives=7)
    loss.build([(6, )], [(5, )])
    loss.set_train_labels(LABELS)
    before = loss.memory.clone()
    for overflow in (True, False, False):
        student = batch(rank, 6)
        student[:, 1] += float('inf') if overflow and rank == 0 else 0
        value = loss([student], [batch(5 + rank, 5)], at([3 * rank, 3 * rank + 1, 3 * rank + 2]))
        check_same(loss.memory)
        check_same(loss.normalizers)
        if overflow:
            # All ranks skip this step, and the first Z is that of the next.
            assert not value.isfinite() and loss.normalizers[0] == 0
            changed = (loss.memory != before).any(dim=2)
            assert changed.tolist() == [[False] * 3 + [True] * 3 + [False] * 4, [True] * 6 + [False] * 4]
        else:
            assert value.isfinite() and loss.normalizers.isfinite().all() and (loss.normalizers > 0).all()
        assert loss.memory.isfinite().all()


def worker(rank: int) -> None:
    check_margins(rank)
    check_paraphraser(rank)
    check_memory(rank)


def test_two_processes_measure_the_same():
    run_in_two_processes(worker)
