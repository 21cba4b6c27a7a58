"""Small images that are kept in memory, and cropped and flipped in whole batches."""
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch import Tensor
from torch.utils.data import get_worker_info

from ..errors import MMKDError
from ..registry import DATASETS, FUNCTIONS
from ..settings import Fraction, NonNegativeInt, PositiveInt, Seed
from .pipelines import transforms_of


@DATASETS.register_module()
class ResidentDataset:
    """A classification dataset whose images are stored in one tensor, on the GPU if there is one.

    The images of another dataset are read once. Batches are random crops and flips, with the distribution of
    MMPretrain's ``RandomCrop`` and ``RandomFlip``, made by a few operations on the whole batch. The crop and
    flip of image i in view v depend only on ``seed``, v and i, in every process and at any time. The index is
    ``v * len(dataset) + i``, see :class:`~mmkd.datasets.ViewSampler`; plain indices refer to view 0.

    The data loader needs ``collate_fn=dict(type='mmkd.as_batch')`` and, with images on a GPU,
    ``num_workers=0``.

    Args:
        dataset: Config of the dataset to read. Its pipeline loads and packs images, and may resize them; they
            must be of one size.
        crop: Height and width of the crops in pixels; ``None`` for no cropping.
        padding: Pixels added on all four sides before cropping.
        padding_mode: Whether the padding is zeros, or the image reflected at its outermost pixels.
        flip: Probability of a horizontal flip.
        views: Number of epochs after which views repeat; ``None`` for never. ``ViewSampler`` reads it.
        seed: Seed of crops and flips; independent of the seed of the training.
        device: The device of the images; ``None`` for the device that MMEngine chooses for the model.

    Raises:
        MMKDError: If a setting is invalid, or the images cannot be stored in one tensor.
    """

    def __init__(self,
                 dataset: dict,
                 crop: PositiveInt | None = None,
                 padding: NonNegativeInt = 0,
                 padding_mode: Literal['constant', 'reflect'] = 'constant',
                 flip: Fraction = 0.0,
                 views: PositiveInt | None = None,
                 seed: Seed = 0,
                 device: str | None = None) -> None:
        if crop is None and padding:
            raise MMKDError("ResidentDataset's padding is for cropping; set crop as well.")
        self.views = views
        self.seed = seed
        self.flip = flip
        self.device = torch.device(device or get_device())
        if self.device.type == 'cuda' and not torch.cuda.is_available():
            raise MMKDError(f"ResidentDataset's device is '{self.device}', but there is no GPU.")
        self.source = MMENGINE_DATASETS.build(dataset)
        if names := list(_random_transforms(self.source)):
            raise MMKDError(f'ResidentDataset reads every image once, so {", ".join(names)} in the pipeline '
                            'of its dataset would be applied only once; remove random transforms there, and '
                            'set crop, padding and flip of ResidentDataset.')
        self.full_init()
        images, samples = _read(self.source, padding, self.device)
        if crop is not None and not 0 < crop <= min(images.shape[-2:]) + 2 * padding:
            raise MMKDError(f"ResidentDataset's crop is {crop}, but the images are {images.shape[-2]}×"
                            f'{images.shape[-1]} with a padding of {padding}.')
        height, width = (crop or side for side in images.shape[-2:])
        if padding:
            images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)), padding_mode)
        # (N, C, tops, lefts, height, width): a view of all possible crops.
        self._crops = torch.from_numpy(images).to(self.device).unfold(2, height, 1).unfold(3, width, 1)
        # Also on the device, or the data preprocessor would synchronize with it at every step.
        self._targets = _stack_targets(samples, self.device)
        self._metainfo = dict(img_shape=(height, width))
        if 'num_classes' in samples[0]:
            self._metainfo['num_classes'] = samples[0].num_classes
        self._sample_type = type(samples[0])
        self._drawn: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> dict:
        """Return one image ``(C, H, W)`` and its data sample."""
        batch = self.__getitems__([index])
        return dict(inputs=batch['inputs'][0], data_samples=batch['data_samples'][0])

    def __getitems__(self, indices: Sequence[int]) -> 'WholeBatch':
        """Return a batch.

        Args:
            indices: B numbers ``view * len(self) + image``.

        Returns:
            WholeBatch: ``inputs``, uint8 ``(B, C, H, W)`` on the device, and ``data_samples``, a list of B.
        """
        if self.device.type != 'cpu' and get_worker_info() is not None:
            raise MMKDError(f"ResidentDataset's images are on '{self.device}', where the workers of a data "
                            "loader cannot read them; set num_workers=0, or device='cpu'.")
        views, images = np.divmod(np.asarray(indices), len(self))
        draws = np.empty((3, len(images)), np.int64)
        for view in np.unique(views).tolist():
            in_view = views == view
            draws[:, in_view] = self._draw(view)[:, images[in_view]]
        choice = torch.from_numpy(np.stack([images, *draws]))
        if self.device.type == 'cuda':  # for a copy that does not wait for the GPU
            choice = choice.pin_memory()
        rows, tops, lefts, flips = choice.to(self.device, non_blocking=True)
        inputs = self._crops[rows, :, tops, lefts]
        if self.flip:
            inputs = torch.where(flips.bool()[:, None, None, None], inputs.flip(-1), inputs)
        return WholeBatch(inputs=inputs, data_samples=self._samples(rows, images.tolist(), views.tolist()))

    def _draw(self, view: int) -> np.ndarray:
        """Return the random numbers of a view, int64 ``(3, N)``: top, left, and whether to flip (1 or 0)."""
        if self._drawn is None or self._drawn[0] != view:
            # Three raw words of a counter-based generator per image: unlike the distributions of NumPy's
            # Generator, they are the same in all versions, and independent of the number of images.
            words = np.random.Philox(key=[self.seed, view]).random_raw(3 * len(self)).reshape(-1, 3)
            tops, lefts = self._crops.shape[2:4]
            flips = (words[:, 2] >> 11) * 2.0**-53 < self.flip
            draws = np.stack([words[:, 0] % tops, words[:, 1] % lefts, flips]).astype(np.int64)
            self._drawn = view, draws
        return self._drawn[1]

    def _samples(self, rows: Tensor, images: list[int], views: list[int]) -> list:
        """Return new data samples; samples of earlier batches may hold predictions.

        Args:
            rows: The numbers of the images, int64 ``(B,)``, on the device.
            images: The numbers of the images as plain numbers.
            views: The view of each image.
        """
        targets = {name: values[rows].unbind() for name, values in self._targets.items()}
        samples = []
        for position, (image, view) in enumerate(zip(images, views, strict=True)):
            sample = self._sample_type()
            for name, value in dict(self._metainfo, sample_idx=image, view=view).items():
                sample.set_field(value, name, field_type='metainfo')
            for name, values in targets.items():
                sample.set_field(values[position], name)
            samples.append(sample)
        return samples

    # The interface that runners, hooks and methods use

    def full_init(self) -> None:
        self.source.full_init()

    @property
    def metainfo(self) -> dict:
        return self.source.metainfo

    @property
    def CLASSES(self) -> Sequence[str] | None:  # noqa: N802  MMPretrain's name
        return self.metainfo.get('classes')

    def get_data_info(self, idx: int) -> dict:
        return self.source.get_data_info(idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        return self.source.get_cat_ids(idx)

    def get_gt_labels(self) -> np.ndarray:
        return self.source.get_gt_labels()


class WholeBatch(dict):
    """A batch that must not be collated; reading item 0, as collate functions do, is an error."""

    def __missing__(self, key: Any) -> Any:
        raise MMKDError('ResidentDataset returns whole batches; its data loader must have '
                        "collate_fn=dict(type='mmkd.as_batch').")


@FUNCTIONS.register_module()
def as_batch(batch: WholeBatch) -> dict:
    """Collate a batch of a dataset that returns whole batches."""
    return dict(batch)


def _random_transforms(dataset: Any) -> Iterator[str]:
    """Yield the names of random transforms, which MMCV marks as such or which have such a name."""
    for transform in transforms_of(dataset):
        name = type(getattr(transform, 't', transform)).__name__  # MMPretrain wraps torchvision's
        if getattr(transform, '_methods_with_randomness', None) or name.startswith(
                ('Random', 'AutoAugment', 'RandAugment', 'TrivialAugment', 'AugMix', 'ColorJitter')):
            yield name


def _read(dataset: Any, padding: int, device: torch.device) -> tuple[np.ndarray, list]:
    """Read all images of a dataset.

    Args:
        dataset: A built dataset whose pipeline packs images.
        padding: Pixels that will be added on all sides, which also take memory.
        device: The device for which the images are read.

    Returns:
        tuple: Images, uint8 ``(N, C, H, W)``, and the list of their data samples.

    Raises:
        MMKDError: If images are not packed, not uint8, not of one size, or too many for the memory.
    """
    start, number, samples = time.perf_counter(), len(dataset), []
    for index in range(number):
        item = dataset[index]
        if not isinstance(item, dict) or not {'inputs', 'data_samples'} <= item.keys():
            raise MMKDError("The pipeline of ResidentDataset's dataset must end with PackInputs.")
        image = item['inputs']
        if index == 0:
            if image.dtype != torch.uint8:
                raise MMKDError(f'ResidentDataset needs uint8 images, but its dataset has {image.dtype}.')
            channels, height, width = image.shape
            size = number * channels * (height + 2 * padding) * (width + 2 * padding)
            if size > (free := _memory(device)):
                raise MMKDError(f"ResidentDataset's {number} images of {height}×{width} need {size >> 20} "
                                f"MiB, but '{device}' has {free >> 20} MiB.")
            print_log(f'ResidentDataset: reading {number} images of {height}×{width}; with padding, they '
                      f"take {size / 2**20:.1f} MiB on '{device}'.", 'current')
            images = np.empty((number, channels, height, width), np.uint8)
        if tuple(image.shape) != images.shape[1:]:
            raise MMKDError(f'ResidentDataset needs images of one size, but image 0 is {height}×{width} and '
                            f'image {index} is {image.shape[-2]}×{image.shape[-1]}; add Resize to the '
                            'pipeline of its dataset.')
        images[index] = image.numpy()
        samples.append(item['data_samples'])
    print_log(f'ResidentDataset: read in {time.perf_counter() - start:.1f} s.', 'current')
    return images, samples


def _memory(device: torch.device) -> int:
    """Return the free memory of a GPU, or for other devices the memory of the machine, in bytes."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device.index)[0]
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _stack_targets(samples: list, device: torch.device) -> dict[str, Tensor]:
    """Return the labels (and scores) of all data samples, each as a tensor with N rows."""
    names = samples[0].keys()
    try:
        return {name: torch.stack([sample.get(name) for sample in samples]).to(device) for name in names}
    except (RuntimeError, TypeError):
        raise MMKDError(f'ResidentDataset needs {", ".join(names)} of the same shape for all images.'
                        ) from None
