"""A dataset whose random augmentation can be replayed."""
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import MMKDError
from ..random_state import preserved_cpu_generators, set_cpu_seeds
from ..registry import DATASETS
from ..settings import PositiveInt, Seed


@DATASETS.register_module()
class ReplayedDataset(Dataset):
    """Wraps a dataset, and provides a fixed number of random views of every image.

    Item ``v * len(dataset) + i`` is image i in view v. While the pipeline of the wrapped dataset runs, the
    generators of Python, NumPy and torch (CPU) are seeded from ``(seed, v, i)``; they are restored afterward.
    So a view is the same in any order, worker, rank, epoch and run. A transform that draws from a private
    generator cannot be replayed. :class:`ViewSampler` iterates over the views, one per epoch.

    Samples have ``sample_idx`` (i) and ``view`` (v) in their metainfo.

    Args:
        dataset: Config of an MMPretrain dataset.
        views: Number of views.
        seed: Seed of the views.
        mix: Ways to mix an image with another random image in the same view, which makes floating-point
            inputs and soft labels ``gt_score``: a list of ``dict(type='Mixup', alpha=…)`` and
            ``dict(type='CutMix', alpha=…)``, of which one is drawn for each sample.

    Raises:
        MMKDError: If ``mix`` is invalid.
    """

    def __init__(self, dataset: dict, views: PositiveInt = 1, seed: Seed = 0,
                 mix: Sequence[dict] | None = None) -> None:
        self.views = views
        self.seed = seed
        self.mix = [_check_mix(entry) for entry in mix or []]
        self.dataset = DATASETS.build(dataset)
        self._seeds: tuple[int, np.ndarray] | None = None
        self._classes = len(self.dataset.metainfo.get('classes') or ())
        if self.mix and not self._classes:
            raise MMKDError(f'`mix` makes soft labels, but {type(self.dataset).__name__} does not define '
                            'classes; set metainfo=dict(classes=…) in its config.')

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Return a batch of items; data loaders prefer this, which restores the generators once per batch."""
        with preserved_cpu_generators():
            return [self._item(index) for index in indices]

    def _item(self, index: int) -> dict:
        view, number = divmod(index, len(self))
        if not 0 <= view < self.views:
            raise IndexError(f'Item {index} of {len(self)} images in {self.views} views.')
        data = self._in_view(view, number)
        sample = data['data_samples']
        if self.mix:
            generator = np.random.default_rng((self.seed, view, number))
            other = self._in_view(view, int(generator.integers(len(self))))
            kind, alpha = self.mix[generator.integers(len(self.mix))]
            images = data['inputs'].float(), other['inputs'].float()
            if images[0].shape != images[1].shape:
                raise MMKDError('`mix` needs images of the same size, but the pipeline makes '
                                f'{tuple(images[0].shape)} and {tuple(images[1].shape)}.')
            data['inputs'], share = _MIXTURES[kind](*images, generator.beta(alpha, alpha), generator)
            score = _score(sample, self._classes)
            other_score = _score(other['data_samples'], self._classes)
            sample.set_gt_score(share * score + (1 - share) * other_score)
        sample.set_metainfo(dict(sample_idx=number, view=view))
        return data

    def _in_view(self, view: int, number: int) -> dict:
        set_cpu_seeds(*self._seeds_of(view)[number].tolist())
        return self.dataset[number]

    def _seeds_of(self, view: int) -> np.ndarray:
        """Return three seeds for every image ``(N, 3)``, which are made for all images at once for speed."""
        if self._seeds is None or view != self._seeds[0]:
            words = np.random.SeedSequence((self.seed, view)).generate_state(3 * len(self))
            self._seeds = view, words.reshape(-1, 3)
        return self._seeds[1]

    # The interface that MMEngine and methods use

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Read the annotations, if ``lazy_init`` has deferred it."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """Return the annotations of an image."""
        return self.dataset.get_data_info(index)

    def get_cat_ids(self, index: int) -> list[int]:
        """Return the classes of an image."""
        return self.dataset.get_cat_ids(index)

    def get_gt_labels(self) -> np.ndarray:
        """Return the class of every image ``(N,)``."""
        return np.array([self.get_data_info(index)['gt_label'] for index in range(len(self))])


def mix_by_mixup(image: Tensor, other: Tensor, share: float, generator: np.random.Generator
                 ) -> tuple[Tensor, float]:
    """Blend two images (mixup, Zhang et al., ICLR 2018).

    Args:
        image: Shape ``(C, H, W)``.
        other: Another image of the same shape.
        share: The weight λ of ``image``.
        generator: Not used.

    Returns:
        tuple: The mixture ``(C, H, W)``, and the weight of the label of ``image``.
    """
    return share * image + (1 - share) * other, share


def mix_by_cutmix(image: Tensor, other: Tensor, share: float, generator: np.random.Generator
                  ) -> tuple[Tensor, float]:
    """Paste a box of another image (CutMix, Yun et al., ICCV 2019).

    The box has the aspect ratio of the image, 1 - λ of its area, and a uniformly drawn center. It is clipped
    to the image, and the labels are weighted by the visible areas.

    Args:
        image: Shape ``(C, H, W)``.
        other: Another image of the same shape.
        share: The fraction λ of the area that remains of ``image``.
        generator: The generator that draws the center.

    Returns:
        tuple: The mixture ``(C, H, W)``, and the weight of the label of ``image``.
    """
    rows, columns = (_interval(size, (1 - share)**0.5, generator) for size in image.shape[-2:])
    mixture = image.clone()
    mixture[:, rows, columns] = other[:, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixture, 1 - area / (image.shape[-2] * image.shape[-1])


_MIXTURES = dict(Mixup=mix_by_mixup, CutMix=mix_by_cutmix)


def _interval(size: int, fraction: float, generator: np.random.Generator) -> slice:
    length, center = int(size * fraction), int(generator.integers(size))
    start = center - length // 2
    return slice(max(start, 0), min(start + length, size))


def _check_mix(entry: dict) -> tuple[str, float]:
    entry = dict(entry)
    if set(entry) != {'type', 'alpha'} or entry['type'] not in _MIXTURES or not entry['alpha'] > 0:
        raise MMKDError("`mix` is a list of dict(type='Mixup', alpha=…) and dict(type='CutMix', alpha=…), "
                        f'with alpha above 0; it cannot contain {entry}.')
    return entry['type'], float(entry['alpha'])


def _score(sample: BaseDataElement, classes: int) -> Tensor:
    """Return the label of a sample as probabilities of classes ``(K,)``."""
    if 'gt_score' in sample:
        return sample.gt_score.float()
    return torch.zeros(classes).index_fill(0, sample.gt_label, 1.0)
