"""Seeding data loading workers so that training can be resumed exactly."""
import os
import random

import numpy as np
import torch

from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seed a worker from the main process's random state and the rank.

    MMEngine's default gives a worker the same seed whenever it starts. This one follows the base seed that
    torch draws from the main process's generator for every epoch; with that generator restored
    (:class:`~mmkd.engine.hooks.ExactResumeHook`), the workers repeat what they did. For that they must
    start anew every epoch: ``persistent_workers=False``.

    Args:
        worker_id: Number of the worker; torch has already added it to the seed.
    """
    rank = int(os.environ.get('RANK', 0))
    generator = np.random.SeedSequence([torch.initial_seed(), rank])
    python_seed, numpy_seed, torch_seed = (int(seed) for seed in generator.generate_state(3))
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.manual_seed(torch_seed)
