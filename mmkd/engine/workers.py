"""Seeding the workers of data loaders so that training can be resumed exactly."""
import os
import random

import numpy as np
import torch

from ..registry import FUNCTIONS


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seed a worker from the random state of the main process and the rank.

    MMEngine's default gives a worker the same seed whenever it starts. This function follows the base seed
    that torch draws from the main process's generator in every epoch; once that generator is restored
    (:class:`~mmkd.engine.hooks.ExactResumeHook`), the workers draw the same numbers again. This requires new
    workers in every epoch: ``persistent_workers=False``.

    Args:
        worker_id: Number of the worker; torch has already added it to the seed.
    """
    rank = int(os.environ.get('RANK', 0))
    generator = np.random.SeedSequence([torch.initial_seed(), rank])
    python_seed, numpy_seed, torch_seed = (int(seed) for seed in generator.generate_state(3))
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.manual_seed(torch_seed)
