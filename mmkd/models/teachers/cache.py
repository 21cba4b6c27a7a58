"""The class logits of a teacher, computed once and read during training."""
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ...checkpoints import find_invalid, write_atomic
from ...errors import MMKDError, escaped, one_line

SPOTS = ('cls_logits', 'cls_outputs')
"""The spots of a teacher whose values a cache holds."""

_INDEX = 'cache.json'
_TOOL = 'tools/misc/cache_teacher.py'


class TeacherCache:
    r"""A folder with the class logits of a teacher for numbered views of the training images.

    ``cache.json`` holds a fingerprint of the teacher and the data, and there is one file for each view.
    Either all logits of an image are stored or only the k largest, as float16. In the latter case, all other
    logits are replaced by one constant per image,

    .. math:: r = \\log \\sum_{j \\text{ omitted}} e^{z_j} - \\log (K - k),

    which preserves the total probability of the omitted classes (at temperature 1). A file is written
    completely or not at all, verified by its SHA-256 before it is read, and mapped into memory.

    Args:
        folder: The folder of an existing cache.

    Raises:
        MMKDError: If there is no cache, or its ``cache.json`` cannot be read.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        path = os.path.join(folder, _INDEX)
        if not os.path.isfile(path):
            raise MMKDError(f'There is no teacher cache in {folder!r} (it has no {_INDEX}); '
                            f'make one with {_TOOL}.')
        try:
            with open(path) as file:
                content = json.load(file)
            self.fingerprint = content['fingerprint']
            self.images, self.classes, self.kept, self.views = (
                int(content[name]) for name in ('images', 'classes', 'kept', 'views'))
            self.files = {name: dict(sha256=str(file['sha256']), top1=float(file['top1']))
                          for name, file in content['files'].items()}
            if not 0 < self.kept <= self.classes or self.images < 1:
                raise ValueError
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            raise MMKDError(f'The teacher cache {folder!r} is damaged: its {_INDEX} cannot be read.'
                            ) from None
        self._opened: dict[int, dict[str, Tensor]] = {}
        self._verified: set[int] = set()
        self._checked = False

    @classmethod
    def create(cls, folder: str, fingerprint: Mapping, images: int, classes: int, kept: int,
               views: int) -> 'TeacherCache':
        """Create a cache, or open an existing cache of the same teacher and data to add views to it.

        Args:
            folder: The folder of the cache.
            fingerprint: As returned by :func:`fingerprint_of`.
            images: The number of images N.
            classes: The number of classes K.
            kept: The number k of logits that are stored per image, at most K.
            views: The number of views; an existing cache with more views keeps them.

        Raises:
            MMKDError: If there is a cache of a different teacher, data or number of logits.
        """
        path = os.path.join(folder, _INDEX)
        if not os.path.exists(path):
            _write_json(path, dict(images=images, classes=classes, kept=kept, views=views, files={},
                                   fingerprint=fingerprint))
        cache = cls(folder)
        cache.compare(fingerprint)
        if cache.kept != kept:
            raise MMKDError(f'The teacher cache {folder!r} holds {cache.kept} logits per image, not {kept}; '
                            'choose another folder.')
        cache.views = max(cache.views, views)
        return cache

    def read(self, views: Sequence[int], images: Sequence[int]) -> Tensor:
        """Return the logits of a batch.

        Args:
            views: The view of every sample, B numbers.
            images: The image of every sample, B numbers.

        Returns:
            Tensor: Shape ``(B, K)``, float32, on the CPU.

        Raises:
            MMKDError: If a view is not in the cache.
        """
        view_of_row, image_of_row = torch.as_tensor(views), torch.as_tensor(images)
        logits = torch.empty(len(view_of_row), self.classes)
        for view in view_of_row.unique().tolist():
            rows = view_of_row == view
            logits[rows] = unpack(self._open(view), image_of_row[rows], self.classes)
        return logits

    def read_samples(self, data_samples: Sequence) -> Tensor:
        """Return the logits ``(B, K)`` of samples by their ``view`` and ``sample_idx``.

        Raises:
            MMKDError: If the samples do not have these, or :meth:`check` has not been called.
        """
        if not all('view' in sample and 'sample_idx' in sample for sample in data_samples):
            raise MMKDError(
                f'The teacher cache {self.folder!r} holds numbered views, and these samples have no view; '
                'the training data must be a ReplayedDataset or another dataset with `views`.')
        if not self._checked:
            raise MMKDError(f'The teacher cache {self.folder!r} has not been compared with this training; '
                            'keep mmkd.TeacherCheckHook among its hooks (mmkd.apis.prepare_config adds it).')
        return self.read([sample.view for sample in data_samples],
                         [sample.sample_idx for sample in data_samples])

    def write(self, view: int, packed: Mapping[str, Tensor], top1: float) -> None:
        """Add a view.

        Args:
            view: The number of the view.
            packed: The logits of all images, as returned by :func:`pack`.
            top1: The teacher's top-1 accuracy on these images, in percent.
        """
        content = save({name: tensor.contiguous() for name, tensor in packed.items()})
        write_atomic(content, self._path(view))
        self.files[_name(view)] = dict(sha256=hashlib.sha256(content).hexdigest(), top1=top1)
        _write_json(os.path.join(self.folder, _INDEX),
                    dict(images=self.images, classes=self.classes, kept=self.kept, views=self.views,
                         files=self.files, fingerprint=self.fingerprint))

    def has(self, view: int) -> bool:
        """Whether the cache holds a view, undamaged."""
        try:
            self._verify(view)
        except MMKDError:
            return False
        return True

    def compare(self, fingerprint: Mapping) -> None:
        """Check that this cache was made from the same teacher and data.

        Raises:
            MMKDError: If it was not; the error names the first differences.
        """
        differences = list(_differences(self.fingerprint, json.loads(json.dumps(fingerprint))))
        if differences:
            more = f' and {len(differences) - 3} more' if len(differences) > 3 else ''
            raise MMKDError(f'The teacher cache {self.folder!r} was made from a different teacher or '
                            f'different data: {", ".join(differences[:3])}{more}; make a new cache with '
                            f'{_TOOL}.')

    def check(self, fingerprint: Mapping, views: int | None) -> None:
        """Check that this cache holds everything that a training run needs.

        Args:
            fingerprint: The fingerprint of the training run, as returned by :func:`fingerprint_of`.
            views: The number of views of its training data.

        Raises:
            MMKDError: If it does not.
        """
        self.compare(fingerprint)
        if views is None:
            raise MMKDError('A teacher cache needs training data with a fixed number of views; set '
                            'train_dataloader.dataset.views.')
        for view in range(views):
            self._verify(view)
        self._checked = True

    def top1(self) -> float:
        """Return the teacher's top-1 accuracy on the views in the cache, in percent."""
        return float(np.mean([file['top1'] for file in self.files.values()]))

    def _open(self, view: int) -> dict[str, Tensor]:
        if view not in self._opened:
            self._verify(view)
            # Two views stay open: an epoch begins while batches of the previous one are in use.
            for oldest in list(self._opened)[:-1]:
                del self._opened[oldest]
            self._opened[view] = self._load(view)
        return self._opened[view]

    def _load(self, view: int) -> dict[str, Tensor]:
        """Read a view and check its content; a stranger can write a digest that fits it."""
        try:
            packed = load_file(self._path(view))
        except Exception as error:  # safetensors and torch raise many types
            raise MMKDError(f'The file {self._path(view)!r} of the teacher cache cannot be read '
                            f'({one_line(error)}).') from None
        expected: dict[str, Any] = dict(values=((self.images, self.kept), torch.float16))
        if self.kept < self.classes:
            expected |= dict(rest=((self.images, ), torch.float16),
                             indices=((self.images, self.kept), _index_type(self.classes)))
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in packed.items()}
        indices = packed.get('indices', torch.zeros(1))
        if found != expected or indices.min() < 0 or indices.max() >= self.classes:
            raise MMKDError(f'The file {self._path(view)!r} of the teacher cache does not hold the logits of '
                            f'{self.images} images and {self.classes} classes.')
        return packed

    def _verify(self, view: int) -> None:
        if view in self._verified:
            return
        if _name(view) not in self.files or not os.path.isfile(self._path(view)):
            raise MMKDError(f'The teacher cache {self.folder!r} lacks view {view}; run {_TOOL} with --views '
                            f'{max(view + 1, self.views)} to add the missing views.')
        digest = hashlib.sha256()
        with open(self._path(view), 'rb') as file:
            while block := file.read(2**22):
                digest.update(block)
        if digest.hexdigest() != self.files[_name(view)]['sha256']:
            raise MMKDError(f'The file {self._path(view)!r} of the teacher cache is damaged; delete it and '
                            f'run {_TOOL} to make it again.')
        if problem := find_invalid(self._load(view)):
            raise MMKDError(f'The file {self._path(view)!r} of the teacher cache is of no use: {problem}; '
                            f'delete it and run {_TOOL} to make it again.')
        self._verified.add(view)

    def _path(self, view: int) -> str:
        return os.path.join(self.folder, _name(view))


def _name(view: int) -> str:
    return f'view_{view:03d}.safetensors'


def _write_json(path: str, content: Mapping) -> None:
    write_atomic(json.dumps(content, indent=1).encode(), path)


# The content of a view's file


def pack(logits: Tensor, kept: int) -> dict[str, Tensor]:
    """Compress logits to float16, and to the largest of each image.

    Args:
        logits: Shape ``(N, K)``.
        kept: The number k of logits to keep per image.

    Returns:
        dict: ``values`` ``(N, k)``, and if k is less than K ``indices`` ``(N, k)`` and ``rest`` ``(N,)``.

    Raises:
        MMKDError: If a logit is infinite, not a number, or too large for float16.
    """
    logits = logits.float().cpu()
    classes = logits.shape[1]
    if kept < classes:
        values, indices = logits.topk(kept, dim=1)
        omitted = logits.scatter(1, indices, -torch.inf)
        packed = dict(values=values, rest=omitted.logsumexp(dim=1) - np.log(classes - kept))
    else:
        packed = dict(values=logits)
    packed = {name: tensor.half() for name, tensor in packed.items()}
    if not all(tensor.isfinite().all() for tensor in packed.values()):
        raise MMKDError('Some logits of the teacher cannot be stored as float16 (above 65504, infinite or '
                        'not a number), so they cannot be cached.')
    if kept < classes:
        packed['indices'] = indices.to(_index_type(classes))
    return packed


def unpack(packed: Mapping[str, Tensor], images: Tensor, classes: int) -> Tensor:
    """Return the logits of some images.

    Args:
        packed: The logits of all images, as returned by :func:`pack`.
        images: The numbers of the images ``(B,)``.
        classes: The number of classes K.

    Returns:
        Tensor: Shape ``(B, K)``, float32.
    """
    values = packed['values'][images].float()
    if 'rest' not in packed:
        return values
    rest = packed['rest'][images].float()
    return rest[:, None].repeat(1, classes).scatter(1, packed['indices'][images].long(), values)


def view_bytes(images: int, classes: int, kept: int) -> int:
    """Return the approximate size of a view's file in bytes."""
    if kept == classes:
        return 2 * images * classes
    return images * (2 * kept + _index_type(classes).itemsize * kept + 2)


def check_room(folder: str, needed: int) -> int:
    """Check that the disk of a folder has enough free space, and return the free bytes.

    Raises:
        MMKDError: If it does not.
    """
    existing = next(path for path in [Path(folder).absolute(), *Path(folder).absolute().parents]
                    if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise MMKDError(f'The teacher cache needs {needed / 2**20:.1f} MiB in {folder!r}, where '
                        f'{free / 2**20:.1f} MiB are free; choose another --out, fewer --views or a smaller '
                        '--top-k.')
    return free


def _index_type(classes: int) -> torch.dtype:
    return torch.int16 if classes <= 2**15 else torch.int32


def check_spots(spots: Sequence[str]) -> None:
    """Check that a cache holds the values of some spots.

    Raises:
        MMKDError: If it does not; the error names these spots.
    """
    if missing := [spot for spot in spots if spot not in SPOTS]:
        raise MMKDError(f'A teacher cache holds class logits only, but a method needs '
                        f'{", ".join(map(repr, missing))} of the teacher; train without teacher.cache.')


def _differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
    """Yield descriptions of all entries that differ between two fingerprints."""
    children: list[tuple[Any, Any, Any]]
    if isinstance(old, dict) and isinstance(new, dict):
        children = [(key, old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        children = [(index, old[index], new[index]) for index in range(len(old))]
    elif old != new:
        readable = max(len(repr(old)), len(repr(new))) <= 40
        yield path + (f' was {old!r} and is {new!r}' if readable else ' differs')
        return
    else:
        return
    for key, old_child, new_child in children:
        name = escaped(str(key))
        yield from _differences(old_child, new_child, f'{path}.{name}' if path else name)
