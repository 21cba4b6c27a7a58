"""Taking steps in two processes."""
import os
from collections.abc import Callable

import torch
from mmengine.model import MMDistributedDataParallel
from torch import distributed as torch_dist


def join(rank: int, port: int) -> None:
    """Join the other process."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2',
                      LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch_dist.init_process_group('gloo')


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
