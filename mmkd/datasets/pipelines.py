"""The transforms of datasets."""
from collections.abc import Iterator
from typing import Any


def transforms_of(dataset: Any) -> Iterator[Any]:
    """Yield the transforms of a dataset, and those of the datasets that it wraps.

    Args:
        dataset: A dataset, or a wrapper such as ``ConcatDataset``, ``RepeatDataset`` and
            ``MultiImageMixDataset``.
    """
    for inner in [*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from transforms_of(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if pipeline is not None:
        yield from getattr(pipeline, 'transforms', pipeline)
