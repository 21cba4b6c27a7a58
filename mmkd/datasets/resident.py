"""Small images resident in memory, cropped and flipped by whole batches."""
import os
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch import Tensor
from torch.utils.data import get_worker_info

from ..errors import MMKDError
from ..registry import DATASETS, FUNCTIONS


@DATASETS.register_module()
class ResidentDataset:
    """A classification dataset whose images lie in one tensor, where possible on the GPU.

    The images of another dataset are read once. Batches are random crops and flips, with the distribution of
    MMPretrain's ``RandomCrop`` and ``RandomFlip``, made by a few operations on the whole batch. Those of
    image i in view v follow from ``seed``, v and i alone, whatever process asks for them, and when. The index
    is ``v * len(dataset) + i``, see :class:`~mmkd.datasets.ViewSampler`; plain indices mean view 0.

    Its data loader needs ``collate_fn=dict(type='mmkd.as_batch')`` and, with images on a GPU,
    ``num_workers=0``.

    Args:
        dataset: Config of the dataset to read. Its pipeline loads, may resize, and packs; then images must be
            of one size.
        crop: Height and width of the crops; ``None`` leaves images whole.
        padding: Pixels added on all four sides before cropping.
        padding_mode: Whether these are zeros, or the image reflected at its outermost pixels.
        flip: Probability of a horizontal flip.
        views: After how many epochs views repeat; ``None`` for never. ``ViewSampler`` asks for it.
        seed: Of crops and flips. It does not follow the training's.
        device: Where the images are; ``None`` for where MMEngine puts the model.
    """

    def __init__(self,
                 dataset: dict,
                 crop: int | None = None,
                 padding: int = 0,
                 padding_mode: Literal['constant', 'reflect'] = 'constant',
                 flip: float = 0.0,
                 views: int | None = None,
                 seed: int = 0,
                 device: str | None = None) -> None:
        if padding_mode not in ('constant', 'reflect'):
            raise MMKDError(f"ResidentDataset's padding_mode is {padding_mode!r}, but must be 'constant' or "
                            "'reflect'.")
        if crop is None and padding:
            raise MMKDError("ResidentDataset's padding is for cropping; set crop, too.")
        if views is not None and views < 1:
            raise MMKDError(f"ResidentDataset's views is {views}, but must be at least 1, or None.")
        self.views = views
        self.seed = seed
        self.flip = flip
        self.device = torch.device(device or get_device())
        if self.device.type == 'cuda' and not torch.cuda.is_available():
            raise MMKDError(f"ResidentDataset's device is '{self.device}', but there is no GPU.")
        self.source = MMENGINE_DATASETS.build(dataset)
        if names := list(_random_transforms(self.source)):
            raise MMKDError(f'ResidentDataset reads every image once, so would keep what {", ".join(names)} '
                            'in the pipeline of its dataset did then; leave random transforms out, and set '
                            'crop, padding and flip of ResidentDataset.')
        self.full_init()
        images, samples = _read(self.source, padding, self.device)
        if crop is not None and not 0 < crop <= min(images.shape[-2:]) + 2 * padding:
            raise MMKDError(f"ResidentDataset's crop is {crop}, but images are {images.shape[-2]}×"
                            f'{images.shape[-1]} with padding of {padding}.')
        height, width = (crop or side for side in images.shape[-2:])
        if padding:
            images = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)), padding_mode)
        # (N, C, tops, lefts, height, width): every crop there is, without a copy.
        self._crops = torch.from_numpy(images).to(self.device).unfold(2, height, 1).unfold(3, width, 1)
        # On the device as well, or the data preprocessor would wait for it at every step.
        self._targets = _stack_targets(samples, self.device)
        self._metainfo = dict(img_shape=(height, width))
        if 'num_classes' in samples[0]:
            self._metainfo['num_classes'] = samples[0].num_classes
        self._sample_type = type(samples[0])
        self._drawn = None, None

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> dict:
        """Return one image ``(C, H, W)`` and its data sample."""
        batch = self.__getitems__([index])
        return dict(inputs=batch['inputs'][0], data_samples=batch['data_samples'][0])

    def __getitems__(self, indices: Sequence[int]) -> 'WholeBatch':
        """Return a batch.

        Args:
            indices: B times ``view * len(self) + image``.

        Returns:
            WholeBatch: ``inputs``, uint8 ``(B, C, H, W)`` on the device, and ``data_samples``, a list of B.
        """
        if self.device.type != 'cpu' and get_worker_info() is not None:
            raise MMKDError(f"ResidentDataset's images are on '{self.device}', out of reach of a loader's "
                            "workers; set num_workers=0, or device='cpu'.")
        views, images = np.divmod(np.asarray(indices), len(self))
        draws = np.empty((3, len(images)), np.int64)
        for view in np.unique(views).tolist():
            chosen = views == view
            draws[:, chosen] = self._draw(view)[:, images[chosen]]
        choice = torch.from_numpy(np.stack([images, *draws]))
        if self.device.type == 'cuda':  # to be copied without waiting for the GPU
            choice = choice.pin_memory()
        rows, tops, lefts, flips = choice.to(self.device, non_blocking=True)
        inputs = self._crops[rows, :, tops, lefts]
        if self.flip:
            inputs = torch.where(flips.bool()[:, None, None, None], inputs.flip(-1), inputs)
        return WholeBatch(inputs=inputs, data_samples=self._samples(rows, images.tolist(), views.tolist()))

    def _draw(self, view: int) -> np.ndarray:
        """Return the random numbers of a view: int64 ``(3, N)``, tops, lefts, and 1 to flip, else 0."""
        if self._drawn[0] != view:
            # Three raw words of a counter-based generator an image: unlike the distributions of NumPy's
            # Generator, they may not change between versions, and no image's depend on how many there are.
            words = np.random.Philox(key=[self.seed, view]).random_raw(3 * len(self)).reshape(-1, 3)
            tops, lefts = self._crops.shape[2:4]
            flips = (words[:, 2] >> 11) * 2.0**-53 < self.flip
            draws = np.stack([words[:, 0] % tops, words[:, 1] % lefts, flips]).astype(np.int64)
            self._drawn = view, draws
        return self._drawn[1]

    def _samples(self, rows: Tensor, images: list[int], views: list[int]) -> list:
        """Return new data samples; those of earlier batches may hold predictions.

        Args:
            rows: Numbers of the images, int64 ``(B, )``, on the device.
            images: The same.
            views: View of each.
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

    # What runners, hooks and methods ask of a dataset

    def full_init(self) -> None:
        self.source.full_init()

    @property
    def metainfo(self) -> dict:
        return self.source.metainfo

    @property
    def CLASSES(self) -> Sequence[str] | None:  # noqa: N802  as MMPretrain calls it
        return self.metainfo.get('classes')

    def get_data_info(self, idx: int) -> dict:
        return self.source.get_data_info(idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        return self.source.get_cat_ids(idx)

    def get_gt_labels(self) -> np.ndarray:
        return self.source.get_gt_labels()


class WholeBatch(dict):
    """A batch that must not be collated; it says so to functions that try, for they ask for item 0."""

    def __missing__(self, key):
        raise MMKDError('ResidentDataset gives whole batches; its data loader must have '
                        "collate_fn=dict(type='mmkd.as_batch').")


@FUNCTIONS.register_module()
def as_batch(batch: WholeBatch) -> dict:
    """Collate function for datasets that give whole batches."""
    return dict(batch)


def _random_transforms(dataset) -> Iterator[str]:
    """Yield the names of random transforms: of those that MMCV marks as such, or that are called so."""
    for inner in [*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from _random_transforms(inner)
    for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', ()):
        name = type(getattr(transform, 't', transform)).__name__  # MMPretrain wraps torchvision's
        if getattr(transform, '_methods_with_randomness', None) or name.startswith(
                ('Random', 'AutoAugment', 'RandAugment', 'TrivialAugment', 'AugMix', 'ColorJitter')):
            yield name


def _read(dataset, padding: int, device: torch.device) -> tuple[np.ndarray, list]:
    """Read all images of a dataset.

    Args:
        dataset: A built dataset whose pipeline packs.
        padding: Pixels that will be added on all sides; they take memory, too.
        device: Where the images will lie.

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
                raise MMKDError(f'ResidentDataset takes uint8 images, but its dataset gives {image.dtype}.')
            channels, height, width = image.shape
            size = number * channels * (height + 2 * padding) * (width + 2 * padding)
            if size > (free := _memory(device)):
                raise MMKDError(f"ResidentDataset's {number} images of {height}×{width} take {size >> 20} "
                                f"MiB, but '{device}' has {free >> 20} MiB.")
            print_log(f'ResidentDataset: reading {number} images of {height}×{width}; with padding, they '
                      f"take {size / 2**20:.1f} MiB on '{device}'.", 'current')
            images = np.empty((number, channels, height, width), np.uint8)
        if tuple(image.shape) != images.shape[1:]:
            raise MMKDError(f'ResidentDataset takes images of one size, but image 0 is {height}×{width} and '
                            f'image {index} is {image.shape[-2]}×{image.shape[-1]}; add Resize to the '
                            'pipeline of its dataset.')
        images[index] = image.numpy()
        samples.append(item['data_samples'])
    print_log(f'ResidentDataset: read in {time.perf_counter() - start:.1f} s.', 'current')
    return images, samples


def _memory(device: torch.device) -> int:
    """Return how many bytes a GPU has free; of others, what the machine has."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device.index)[0]
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _stack_targets(samples: list, device: torch.device) -> dict[str, Tensor]:
    """Return the labels (and scores) of all data samples, each as a tensor with N rows."""
    names = samples[0].keys()
    try:
        return {name: torch.stack([sample.get(name) for sample in samples]).to(device) for name in names}
    except (RuntimeError, TypeError):
        raise MMKDError(f'ResidentDataset needs {", ".join(names)} of one shape for all images.') from None
