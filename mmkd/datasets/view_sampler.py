"""A sampler whose indices say which view of an image to load."""
from collections.abc import Iterator

from mmengine.dataset import DefaultSampler

from ..registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ViewSampler(DefaultSampler):
    """MMEngine's default sampler, for datasets whose random augmentations are numbered views.

    The index of image i in view v is ``v * len(dataset) + i``. So workers need no further information,
    whether or not they persist from epoch to epoch. Epoch e uses view e modulo the dataset's ``views``; if
    that is ``None``, views never repeat.

    Args:
        dataset: A dataset with ``views``.
        **kwargs: ``shuffle``, ``seed`` and ``round_up`` of ``DefaultSampler``.
    """

    def __iter__(self) -> Iterator[int]:
        views = self.dataset.views
        view = self.epoch if views is None else self.epoch % views
        indices = super().__iter__()
        return (view * len(self.dataset) + index for index in indices)
