"""What a teacher's logits depend on, to know whether a cache of them still holds."""
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import nn

from ...errors import MMKDError
from .teacher import Teacher


def check_cache(teacher: Teacher, student: nn.Module, dataset_cfg: Mapping, dataset: Any) -> None:
    """Check that a teacher's cache, if there is one, was made from this teacher and these data.

    The cache cannot be read before.

    Args:
        teacher: The teacher.
        student: The student network.
        dataset_cfg: The config of the training data.
        dataset: The training data.

    Raises:
        MMKDError: If it was not, or lacks some views of the data.
    """
    if teacher.cache is not None:
        fingerprint = fingerprint_of(teacher, student, dataset_cfg, dataset)
        teacher.cache.check(fingerprint, getattr(dataset, 'views', None))


def fingerprint_of(teacher: Teacher, student: nn.Module, dataset_cfg: Mapping, dataset: Any) -> dict:
    """Return everything that the teacher's logits depend on in training, as plain data.

    Data and weights are identified by their content, not by their paths: weights by their SHA-256, images by
    their number, labels, file names and sizes (or pixels, if the annotations hold them), and some images by
    their pixels after augmentation.

    Args:
        teacher: The teacher.
        student: The student network, whose data preprocessor makes the batches.
        dataset_cfg: The config of the training data.
        dataset: The training data.

    Raises:
        MMKDError: If the teacher's logits of an image are not the same every time.
    """
    if teacher.is_random:
        raise MMKDError("A teacher with checkpoint='random' has different weights in every run, so it cannot "
                        'be cached.')
    if teacher.batch_norm == 'train':
        raise MMKDError("With teacher.batch_norm='train' the teacher's logits depend on the batch, so they "
                        'cannot be cached.')
    if getattr(student.data_preprocessor, 'batch_augments', None) is not None:
        raise MMKDError('Mixing images within batches (train_cfg.augments of the student, batch_augments of '
                        'its data preprocessor) cannot be replayed; move it into `mix` of a ReplayedDataset.')
    return dict(
        teacher=dict(config=plain(teacher.cfg.model), class_mapping=plain(teacher.class_mapping.indices),
                     precision=teacher.inference.precision, weights=digest_of_weights(teacher.model)),
        dataset=dict(config=plain(dataset_cfg), images=len(dataset), contents=_digest_of_images(dataset),
                     pixels=_digest_of_pixels(dataset)),
        student=dict(padding=_padding(student.data_preprocessor)))


_WITHOUT_EFFECT = {
    'ann_file', 'data_prefix', 'data_root', 'device', 'download', 'lazy_init', 'serialize_data', 'views'}
"""Settings of datasets that do not change images. Some select the images, but the digest of the images covers
that."""


def plain(value: Any) -> Any:
    """Return the content of a config as JSON represents it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in ConfigDict(value).items()
                if key not in _WITHOUT_EFFECT}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, type) or (callable(value) and hasattr(value, '__qualname__')):
        return f'{value.__module__}.{value.__qualname__}'
    return value if isinstance(value, (bool, float, int, str, type(None))) else str(value)


def digest_of_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the weights of a network."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith('num_batches_tracked'):  # old files lack them
            digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_images(dataset: Any) -> str:
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        digest.update(repr(np.asarray(info.get('gt_label')).tolist()).encode())
        if 'img' in info:
            digest.update(np.ascontiguousarray(info['img']))
            continue
        path = Path(info['img_path'])
        digest.update('/'.join(path.parts[-2:]).encode())  # independent of where the dataset is stored
        if path.exists():
            digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()


def _digest_of_pixels(dataset: Any) -> str:
    images = np.linspace(0, len(dataset) - 1, 4).astype(int).tolist()
    first, second = (b''.join(dataset[image]['inputs'].cpu().numpy().tobytes() for image in images)
                     for _ in range(2))
    if first != second:
        raise MMKDError('The training pipeline makes different pixels every time, although the generators of '
                        'Python, NumPy and torch are seeded: one of its transforms draws from a private '
                        'generator, so it cannot be replayed.')
    return hashlib.sha256(first).hexdigest()


def _padding(preprocessor: nn.Module) -> dict | None:
    """Return the part of the student's preprocessing that remains in batches converted for the teacher."""
    if preprocessor.pad_size_divisor == 1:
        return None
    statistics = {name: getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std')
                  if hasattr(preprocessor, name)}
    return dict(statistics, divisor=preprocessor.pad_size_divisor, value=preprocessor.pad_value)
