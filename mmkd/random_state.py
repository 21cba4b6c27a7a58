"""Reading, restoring and seeding the random state of a process."""
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.logging import MessageHub


def get_random_state() -> dict:
    """Return the state of the generators of Python, NumPy and torch, including those of all visible GPUs.

    Returns:
        dict: Plain numbers, tuples and ``uint8`` tensors only, so that the state can be saved as data.
    """
    name, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=random.getstate(),
        numpy=(name, keys.tolist(), int(position), int(has_gauss), float(cached)),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def set_random_state(state: dict) -> None:
    """Restore the state that :func:`get_random_state` returned."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([gpu_state.cpu() for gpu_state in state['cuda']])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the random state after the block to what it was before."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextmanager
def separate_random_state() -> Iterator[None]:
    """Draw from separate generators inside the block, and restore the random state after it.

    The numbers drawn inside depend only on the state outside and on the number of the iteration, so no
    further state has to be saved in checkpoints.
    """
    with preserved_random_state():
        # Even if nothing outside draws between two iterations, the numbers drawn here must differ.
        iteration = MessageHub.get_current_instance().get_info('iter', 0) or 0
        seed = (random.getrandbits(31) + 1_000_003 * iteration) % 2**31
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield


def seed_cpu_generators(key: Sequence[int]) -> None:
    """Seed the generators of the CPU from whole numbers of at least 0.

    Workers of data loaders must not use the generators of GPUs.
    """
    set_cpu_seeds(*np.random.SeedSequence(key).generate_state(3).tolist())


def set_cpu_seeds(python_seed: int, numpy_seed: int, torch_seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (CPU), each with its own seed."""
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.default_generator.manual_seed(torch_seed)


@contextmanager
def preserved_cpu_generators() -> Iterator[None]:
    """Restore the generators of the CPU after the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
