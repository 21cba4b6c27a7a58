"""Running the head of a detector once more on the same images."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def reused_features(model: nn.Module, features: Sequence[Tensor]) -> Iterator[None]:
    """Let backbone and neck of a detector return features inside the block, instead of computing them.

    Args:
        model: The detector.
        features: The outputs of its backbone and neck, as recorded at the spot ``features``.
    """
    parts: list[Any] = [model.backbone, *([model.neck] if getattr(model, 'with_neck', False) else [])]
    replaced = [part.__dict__.get('forward') for part in parts]  # a compiled part has its own
    try:
        for part in parts:
            part.forward = lambda *_: tuple(features)
        yield
    finally:
        for part, forward in zip(parts, replaced, strict=True):
            del part.forward
            if forward is not None:
                part.forward = forward


@contextmanager
def preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Let a network update copies of its buffers inside the block, such as the statistics of batch norm."""
    # Copying values back would be an in-place change of tensors that the backward pass may need.
    buffers = [(module, name, buffer) for module in model.modules()
               for name, buffer in module.named_buffers(recurse=False)]
    try:
        for module, name, buffer in buffers:
            setattr(module, name, buffer.clone())
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
