"""Hooks on modules that never outlive the block they are registered for."""
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def module_hooks(forward: Iterable[tuple[nn.Module, Callable[..., Any]]] = (),
                 forward_pre: Iterable[tuple[nn.Module, Callable[..., Any]]] = ()) -> Iterator[None]:
    """Register hooks on modules for a ``with`` block, and remove them however the block ends.

    Args:
        forward: Pairs of a module and a hook that is called as ``hook(module, args, output)`` after the
            module's ``forward``.
        forward_pre: Pairs of a module and a hook that is called as ``hook(module, args, kwargs)`` before the
            module's ``forward``.
    """
    handles = []
    try:
        for module, hook in forward:
            handles.append(module.register_forward_hook(hook))
        for module, hook in forward_pre:
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
