"""Reading and restoring the random state of a process."""
import random
from collections.abc import Iterator
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
