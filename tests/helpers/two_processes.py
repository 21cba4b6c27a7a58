"""Taking steps in two processes."""
import os
import socket
from collections.abc import Callable

import torch
from mmengine.model import MMDistributedDataParallel
from torch import distributed as torch_dist
from torch import multiprocessing


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def run_in_two_processes(worker: Callable, *args) -> None:
    """Call ``worker(rank, *args)`` in two processes that are connected over gloo."""
    multiprocessing.spawn(_connected, (free_port(), worker, args), nprocs=2)


def _connected(rank: int, port: int, worker: Callable, args: tuple) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2',
                      LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch_dist.init_process_group('gloo')
    worker(rank, *args)
    torch_dist.barrier()  # a process that left early would make the other one fail
    torch_dist.destroy_process_group()


def step_twice(model, inputs: Callable, name: str, folder: str, rank: int) -> None:
    """Take two steps, on other data in each process, and check that the gradients are the same in both.

    Args:
        model: A network that distills.
        inputs: Called with the model and a seed; returns a preprocessed batch.
        name: Of a file to write into ``folder`` when all is well, with the rank behind it.
        folder: Where to write it.
        rank: Of this process.
    """
    model = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    for step in range(2):  # parameters without a gradient make the second step fail
        total, _ = model.module.parse_losses(model(**inputs(model.module, 10 * step + rank), mode='loss'))
        model.zero_grad()
        total.backward()
    sums = torch.stack([p.grad.double().sum() for p in model.parameters() if p.requires_grad])
    both = [torch.zeros_like(sums) for _ in range(2)]
    torch_dist.all_gather(both, sums)
    assert torch.equal(*both), name
    open(f'{folder}/{name}.{rank}', 'w').close()
