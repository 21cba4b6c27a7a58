"""A teacher's class logits, computed once and read in training."""
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...checkpoints import write_atomic
from ...errors import MMKDError

SPOTS = ('cls_logits', 'cls_outputs')
"""Spots of a teacher that a cache can answer."""

_INDEX = 'cache.json'
_TOOL = 'tools/misc/cache_teacher.py'


class TeacherCache:
    r"""A folder with the class logits that a teacher gives for numbered views of training images.

    ``cache.json`` says what they were made from, and there is a file for each view. All logits are stored, or
    the k largest of each image, all as float16. In place of the others then stands one constant per image,

    .. math:: r = \\log \\sum_{j \\text{ left out}} e^{z_j} - \\log (K - k)

    with which the left-out classes together keep their probability (at temperature 1). A file is written
    whole or not at all, checked against its SHA-256 before it is read, and mapped into memory.

    Args:
        folder: Where a cache is.

    Raises:
        MMKDError: If there is none, or its ``cache.json`` cannot be read.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        path = os.path.join(folder, _INDEX)
        if not os.path.isfile(path):
            raise MMKDError(f'There is no teacher cache in {folder!r} (it has no {_INDEX}); '
                            f'{_TOOL} makes one.')
        try:
            with open(path) as file:
                content = json.load(file)
            self.fingerprint = content['fingerprint']
            self.images, self.classes, self.kept, self.views = (
                int(content[name]) for name in ('images', 'classes', 'kept', 'views'))
            self.files = dict(content['files'])
        except (KeyError, TypeError, ValueError):
            raise MMKDError(f'The teacher cache {folder!r} is damaged: its {_INDEX} cannot be read.'
                            ) from None
        self._opened: dict[int, dict[str, Tensor]] = {}
        self._verified: set[int] = set()
        self._checked = False

    @classmethod
    def create(cls, folder: str, fingerprint: Mapping, images: int, classes: int, kept: int,
               views: int) -> 'TeacherCache':
        """Begin a cache, or go on with one.

        Args:
            folder: Where it is, or shall be.
            fingerprint: From :func:`fingerprint_of`.
            images: N.
            classes: K.
            kept: k, at most K.
            views: How many there shall be; more, if there are more already.

        Raises:
            MMKDError: If a cache is there that was made from something else.
        """
        path = os.path.join(folder, _INDEX)
        if not os.path.exists(path):
            _write_json(path, dict(images=images, classes=classes, kept=kept, views=views, files={},
                                   fingerprint=fingerprint))
        cache = cls(folder)
        cache.compare(fingerprint)
        if cache.kept != kept:
            raise MMKDError(f'The teacher cache {folder!r} holds {cache.kept} logits of each image, not '
                            f'{kept}; choose another folder for other ones.')
        cache.views = max(cache.views, views)
        return cache

    def read(self, views: Sequence[int], images: Sequence[int]) -> Tensor:
        """Return the logits of a batch.

        Args:
            views: The view of every sample.
            images: The number of every sample's image.

        Returns:
            Tensor: Shape ``(B, K)``, float32, on the CPU.

        Raises:
            MMKDError: If one of them is not in the cache.
        """
        views, images = torch.as_tensor(views), torch.as_tensor(images)
        logits = torch.empty(len(views), self.classes)
        for view in views.unique().tolist():
            rows = views == view
            logits[rows] = unpack(self._open(view), images[rows], self.classes)
        return logits

    def read_samples(self, data_samples: Sequence) -> Tensor:
        """Return the logits ``(B, K)`` of samples that tell ``view`` and ``sample_idx``.

        Raises:
            MMKDError: If they do not, or :meth:`check` has not been called.
        """
        if not all('view' in sample and 'sample_idx' in sample for sample in data_samples):
            raise MMKDError(
                f'The teacher cache {self.folder!r} was asked about images that are no numbered view; the '
                'training data must be a ReplayedDataset or another one with `views`.')
        if not self._checked:
            raise MMKDError(f'The teacher cache {self.folder!r} has not been compared with this training; '
                            'keep mmkd.TeacherCheckHook among its hooks (mmkd.apis.prepare_config adds it).')
        return self.read([sample.view for sample in data_samples],
                         [sample.sample_idx for sample in data_samples])

    def write(self, view: int, packed: Mapping[str, Tensor], top1: float) -> None:
        """Add a view.

        Args:
            view: Its number.
            packed: What :func:`pack` made of the logits ``(N, K)``.
            top1: The teacher's top-1 accuracy on these images, in percent.
        """
        content = save({name: tensor.contiguous() for name, tensor in packed.items()})
        write_atomic(content, self._path(view))
        self.files[_name(view)] = dict(sha256=hashlib.sha256(content).hexdigest(), top1=top1)
        _write_json(os.path.join(self.folder, _INDEX),
                    dict(images=self.images, classes=self.classes, kept=self.kept, views=self.views,
                         files=self.files, fingerprint=self.fingerprint))

    def has(self, view: int) -> bool:
        """Whether a view is there, and undamaged."""
        try:
            self._verify(view)
        except MMKDError:
            return False
        return True

    def compare(self, fingerprint: Mapping) -> None:
        """Check that this cache was made from the same teacher and data.

        Raises:
            MMKDError: Naming what differs.
        """
        found = list(_differences(self.fingerprint, json.loads(json.dumps(fingerprint))))
        if found:
            more = f' and {len(found) - 3} more' if len(found) > 3 else ''
            raise MMKDError(f'The teacher cache {self.folder!r} was made from something else: '
                            f'{", ".join(found[:3])}{more}; make another one with {_TOOL}.')

    def check(self, fingerprint: Mapping, views: int | None) -> None:
        """Check that this cache answers all that a training asks.

        Args:
            fingerprint: Of this training, from :func:`fingerprint_of`.
            views: How many views its data have.

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
        """Return the teacher's top-1 accuracy on the views that are there, in percent."""
        return float(np.mean([file['top1'] for file in self.files.values()]))

    def _open(self, view: int) -> dict[str, Tensor]:
        if view not in self._opened:
            self._verify(view)
            for oldest in list(self._opened)[:-1]:  # an epoch begins while the last one's batches are in use
                del self._opened[oldest]
            self._opened[view] = load_file(self._path(view))
        return self._opened[view]

    def _verify(self, view: int) -> None:
        if view in self._verified:
            return
        if _name(view) not in self.files or not os.path.isfile(self._path(view)):
            raise MMKDError(f'The teacher cache {self.folder!r} lacks view {view}; {_TOOL} with --views '
                            f'{max(view + 1, self.views)} adds what is missing.')
        digest = hashlib.sha256()
        with open(self._path(view), 'rb') as file:
            while block := file.read(2**22):
                digest.update(block)
        if digest.hexdigest() != self.files[_name(view)]['sha256']:
            raise MMKDError(f'The file {self._path(view)!r} of the teacher cache is damaged; delete it, and '
                            f'{_TOOL} makes it anew.')
        self._verified.add(view)

    def _path(self, view: int) -> str:
        return os.path.join(self.folder, _name(view))


def _name(view: int) -> str:
    return f'view_{view:03d}.safetensors'


def _write_json(path: str, content: Mapping) -> None:
    write_atomic(json.dumps(content, indent=1).encode(), path)


# What a view's file holds


def pack(logits: Tensor, kept: int) -> dict[str, Tensor]:
    """Make logits small.

    Args:
        logits: Shape ``(N, K)``.
        kept: k.

    Returns:
        dict: ``values`` ``(N, k)``, and where k is less than K ``indices`` ``(N, k)`` and ``rest`` ``(N,)``.

    Raises:
        MMKDError: If a logit is infinite, not a number, or too large for float16.
    """
    logits = logits.float().cpu()
    classes = logits.shape[1]
    if kept < classes:
        values, indices = logits.topk(kept, dim=1)
        left_out = logits.scatter(1, indices, -torch.inf)
        packed = dict(values=values, rest=left_out.logsumexp(dim=1) - np.log(classes - kept))
    else:
        packed = dict(values=logits)
    packed = {name: tensor.half() for name, tensor in packed.items()}
    if not all(tensor.isfinite().all() for tensor in packed.values()):
        raise MMKDError('The teacher gives logits that float16 cannot hold (above 65504, infinite or not a '
                        'number), so they cannot be cached.')
    if kept < classes:
        packed['indices'] = indices.to(_index_type(classes))
    return packed


def unpack(packed: Mapping[str, Tensor], images: Tensor, classes: int) -> Tensor:
    """Return the logits of some images.

    Args:
        packed: From :func:`pack`.
        images: Their numbers ``(B,)``.
        classes: K.

    Returns:
        Tensor: Shape ``(B, K)``, float32.
    """
    values = packed['values'][images].float()
    if 'rest' not in packed:
        return values
    rest = packed['rest'][images].float()
    return rest[:, None].repeat(1, classes).scatter(1, packed['indices'][images].long(), values)


def view_bytes(images: int, classes: int, kept: int) -> int:
    """Return about how many bytes a view takes."""
    if kept == classes:
        return 2 * images * classes
    return images * (2 * kept + _index_type(classes).itemsize * kept + 2)


def check_room(folder: str, needed: int) -> int:
    """Check that a folder's disk has room, and return its free bytes.

    Raises:
        MMKDError: If it has not.
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


# What a cache was made from


def fingerprint_of(teacher, student: nn.Module, dataset_cfg: Mapping, dataset) -> dict:
    """Return all that a teacher's answers in training depend on, as plain data.

    Where data and weights lie does not count, only what they are: weights by their SHA-256; images by their
    number, labels, names and sizes (or pixels, where the annotations hold them), and some of them by their
    pixels after augmentation.

    Args:
        teacher (Teacher): The teacher.
        student: The student network; batches come from its data preprocessor.
        dataset_cfg: The config of the training data.
        dataset: The training data.

    Raises:
        MMKDError: If what the teacher answers for an image is not the same every time.
    """
    if teacher.is_random:
        raise MMKDError("A teacher with checkpoint='random' is another one in every run, so it cannot be "
                        'cached.')
    if teacher.batch_norm == 'train':
        raise MMKDError("With teacher.batch_norm='train' the teacher's answers depend on the batch, so they "
                        'cannot be cached.')
    if getattr(student.data_preprocessor, 'batch_augments', None) is not None:
        raise MMKDError('Mixing images within batches (train_cfg.augments of the student, batch_augments of '
                        'its data preprocessor) cannot be replayed; move it into `mix` of a ReplayedDataset.')
    return dict(
        teacher=dict(config=_plain(teacher.cfg.model), class_mapping=_plain(teacher.class_mapping),
                     precision=teacher.inference.precision, weights=_digest_of_weights(teacher.model)),
        dataset=dict(config=_plain(dataset_cfg), images=len(dataset), contents=_digest_of_images(dataset),
                     pixels=_digest_of_pixels(dataset)),
        student=dict(padding=_padding(student.data_preprocessor)))


def check_spots(spots: Sequence[str]) -> None:
    """Check that a cache can answer at some spots.

    Raises:
        MMKDError: Naming those at which it cannot.
    """
    if others := [spot for spot in spots if spot not in SPOTS]:
        raise MMKDError(f'A teacher cache holds class logits only, and a method asks the teacher for '
                        f'{", ".join(map(repr, others))}; train it without teacher.cache.')


_WITHOUT_EFFECT = {
    'ann_file', 'data_prefix', 'data_root', 'device', 'download', 'lazy_init', 'serialize_data', 'views'}
"""Settings of datasets that change no image, or only which ones there are (their contents tell)."""


def _plain(value):
    """Return a config's content as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in ConfigDict(value).items()
                if key not in _WITHOUT_EFFECT}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type) or (callable(value) and hasattr(value, '__qualname__')):
        return f'{value.__module__}.{value.__qualname__}'
    return value if isinstance(value, (bool, float, int, str, type(None))) else str(value)


def _differences(old, new, path: str = '') -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        children = [(key, old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        children = [(index, *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    else:
        if old != new:
            shown = [repr(value) for value in (old, new)]
            readable = max(map(len, shown)) <= 40
            yield path + (f' was {shown[0]} and is {shown[1]}' if readable else ' differs')
        return
    for key, *pair in children:
        yield from _differences(*pair, f'{path}.{key}' if path else str(key))


def _digest_of_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith('num_batches_tracked'):  # which old files lack
            digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_images(dataset) -> str:
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        digest.update(repr(np.asarray(info.get('gt_label')).tolist()).encode())
        if 'img' in info:
            digest.update(np.ascontiguousarray(info['img']))
            continue
        path = Path(info['img_path'])
        digest.update('/'.join(path.parts[-2:]).encode())  # the same wherever the folders lie
        if path.exists():
            digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()


def _digest_of_pixels(dataset) -> str:
    images = np.linspace(0, len(dataset) - 1, 4).astype(int).tolist()
    first, second = (b''.join(dataset[image]['inputs'].cpu().numpy().tobytes() for image in images)
                     for _ in range(2))
    if first != second:
        raise MMKDError('The training pipeline gives other pixels every time, although its generators are '
                        'seeded: one of its transforms draws from a generator of its own, so it cannot be '
                        'replayed.')
    return hashlib.sha256(first).hexdigest()


def _padding(preprocessor: nn.Module) -> dict | None:
    """What of the student's preprocessing is left when its normalization is undone for the teacher."""
    if preprocessor.pad_size_divisor == 1:
        return None
    statistics = {name: getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std')
                  if hasattr(preprocessor, name)}
    return dict(statistics, divisor=preprocessor.pad_size_divisor, value=preprocessor.pad_value)
