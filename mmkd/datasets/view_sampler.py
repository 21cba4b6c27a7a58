"""Telling a dataset with every index which view of the data is wanted."""
from collections.abc import Iterator

from mmengine.dataset import DefaultSampler

from ..registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ViewSampler(DefaultSampler):
    """MMEngine's default sampler for datasets whose random augmentation is a numbered view.

    Image i in view v is asked for as ``v * len(dataset) + i``. So workers, whether or not they live on from
    epoch to epoch, need not be told anything else. Epoch e shows view e modulo the dataset's ``views``; where
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
