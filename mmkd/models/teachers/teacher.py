"""The frozen teacher."""
import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import MMKDError
from ..spots import (
    LogitLayout,
    check_comparable,
    classification_heads,
    classify_map,
    is_classifier,
    logit_layout,
    resolve_spot,
)
from .building import RANDOM, build_teacher_model, read_teacher_config
from .cache import TeacherCache, check_spots, fingerprint_of
from .inference import TeacherForward
from .normalization import BatchConverter, image_shapes


class Teacher:
    """A frozen network that is asked for features and logits, and for nothing else.

    It is no ``nn.Module``, so that a student that holds it has none of it among its parameters, buffers,
    checkpoints and gradient traffic. Copies of the student share it.

    Args:
        config: See :func:`~mmkd.models.teachers.building.read_teacher_config`.
        checkpoint: Path or URL of its weights, or ``'random'``.
        class_mapping: Where the class lists differ: for each class of the student, in order, the index
            of the teacher's class.
        batch_norm: ``'eval'``, or ``'train'``: batch norm uses the statistics of the batch, as in SOKD's
            released code. (There the running ones drift on, which changes nothing in training; here they stay
            as they were loaded.)
        channels_last: Whether it runs with the channels last in memory.
        precision: ``'fp32'``; ``'bf16'`` or ``'fp16'``, see :class:`~mmkd.models.teachers.inference.TeacherForward`.
        compile: Whether ``torch.compile`` makes it faster.
        cache: Classifiers: a folder with the class logits of the training images, to answer from in place of
            the network; see :class:`~mmkd.models.teachers.cache.TeacherCache`.

    Raises:
        MMKDError: If it cannot be built, or is neither a detector nor a classifier.
    """

    def __init__(self,
                 config: str | dict,
                 checkpoint: str | None = None,
                 class_mapping: Sequence[int] | None = None,
                 batch_norm: str = 'eval',
                 channels_last: bool = True,
                 precision: str = 'fp32',
                 compile: bool = False,
                 cache: str | None = None) -> None:
        if batch_norm not in ('eval', 'train'):
            raise MMKDError(f"teacher.batch_norm must be 'eval' or 'train', not {batch_norm!r}.")
        self.batch_norm = batch_norm
        self.cfg = read_teacher_config(config)
        self.checkpoint = checkpoint
        self.class_mapping = class_mapping
        self.cache = None if cache is None else TeacherCache(cache)
        self.model, meta = build_teacher_model(self.cfg, checkpoint)
        if not isinstance(self.model, BaseDetector) and not is_classifier(self.model):
            raise MMKDError(f'The teacher {type(self.model).__name__} is no MMDetection detector and no '
                            'MMPretrain classifier.')
        if self.cache is not None and not is_classifier(self.model):
            raise MMKDError('teacher.cache holds logits of whole images, so it is for classifiers.')
        self.classes = _class_names(meta)
        self.class_indices = None
        self._converter = None
        self._layout = None
        self.inference = TeacherForward(self.model, channels_last, precision, compile)

    def __deepcopy__(self, memo) -> 'Teacher':
        return self

    @property
    def scope(self) -> str:
        """Get the registry scope of its config."""
        return self.cfg.default_scope

    @property
    def is_random(self) -> bool:
        return self.checkpoint == RANDOM

    def build(self, student: nn.Module) -> None:
        """Prepare for a student.

        Args:
            student: The student network; its data preprocessor tells what batches look like.

        Raises:
            MMKDError: If the teacher is for another task, nothing tells how its images are normalized, or the
                student's batches cannot be converted into this teacher's.
        """
        if is_classifier(student) and not is_classifier(self.model):
            raise MMKDError(f'The teacher {type(self.model).__name__} is no MMPretrain classifier; '
                            'a classifier can only be taught by one.')
        if is_classifier(self.model) and not is_classifier(student):
            raise MMKDError(f'The teacher {type(self.model).__name__} is no MMDetection detector; '
                            'a detector can only be taught by one.')
        # One without mean and std (YOLOX) is meant so; none at all means that the config is not whole.
        if self.cfg.model.get('data_preprocessor') is None and getattr(
                student.data_preprocessor, '_enable_normalize', False):
            raise MMKDError("The student's images are normalized, and the teacher's config has no "
                            'data_preprocessor to tell how its own are; add the one that it was trained '
                            'with, with its mean and std.')
        self._converter = BatchConverter(student.data_preprocessor, self.model.data_preprocessor)

    def add_spots(self, spots: Sequence[str]) -> None:
        """Find spots that will be asked for.

        Raises:
            MMKDError: If the teacher lacks one of them.
        """
        if self.cache is not None:
            check_spots(spots)
        self.inference.points.update({spot: resolve_spot(self.model, spot, 'teacher') for spot in spots})

    def needs_rois(self, spots: Sequence[str]) -> bool:
        """Whether the student's boxes are needed for some spots."""
        return any(module.split('.')[0] == 'roi_head'
                   for spot in spots for module in self.inference.points[spot].modules)

    def require_same_size(self) -> None:
        """Prepare to give maps that a student's are compared with point by point: on the same canvas."""
        self._converter.keep_size = True

    def require_logits(self, student: LogitLayout) -> None:
        """Prepare to give class logits that a student's can be compared with.

        Args:
            student: The layout of the student's logits.

        Raises:
            MMKDError: If they cannot be compared, the classes differ and there is no mapping, or a cache
                holds logits of another number of classes.
        """
        if self.cache is not None and self.cache.classes != student.num_classes:
            raise MMKDError(f'The teacher cache {self.cache.folder!r} holds logits of {self.cache.classes} '
                            f'classes, and the student knows {student.num_classes}; make another one with '
                            'tools/misc/cache_teacher.py.')
        own = self._layout = logit_layout(self.model, 'teacher')
        check_comparable(student, own)
        if own.dense:
            self.require_same_size()
        if self.class_mapping is None:
            if student.num_classes != own.num_classes:
                raise MMKDError(
                    f'The teacher knows {own.num_classes} classes and the student {student.num_classes}; '
                    'give teacher.class_mapping, the index of the teacher\'s class for each of the '
                    "student's.")
            return
        mapping = list(self.class_mapping)
        if len(mapping) != student.num_classes or not all(
                isinstance(index, int) and 0 <= index < own.num_classes for index in mapping):
            raise MMKDError(f'teacher.class_mapping must hold {student.num_classes} indices below '
                            f'{own.num_classes}, not {mapping}.')
        self.class_indices = torch.tensor([*mapping, *own.background])

    def in_students_outputs(self, outputs: list) -> list:
        """Return outputs of a head with this teacher's classes, in the student's classes."""
        if self.class_indices is None:
            return outputs
        self.class_indices = self.class_indices.to(next(self.model.parameters()).device)
        return self._layout.select_classes(outputs, self.class_indices)

    def check_class_names(self, student_classes: Sequence[str] | None) -> None:
        """Check the student's class names against those stored in the teacher's checkpoint.

        Raises:
            MMKDError: If they differ and there is no mapping.
        """
        if self.class_mapping is not None or not self.classes or not student_classes:
            return
        mine, other = list(self.classes), list(student_classes)
        if mine != other:
            first = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b),
                         min(len(mine), len(other)))
            raise MMKDError(
                f'The class lists differ from class {first} on: the teacher was trained on '
                f'{mine[first:first + 3]}, the student learns {other[first:first + 3]}; '
                'give teacher.class_mapping, or train with the same list.')

    def relabel(self, sample) -> None:
        """Change a prediction of this teacher, in place, into one of the student's classes.

        Detections of other classes are left out; an image's scores of them, too.
        """
        if self.class_mapping is None:
            return
        if is_classifier(self.model):
            scores = sample.pred_score[list(self.class_mapping)]
            sample.set_pred_score(scores).set_pred_label(scores.argmax(dim=0, keepdim=True))
            return
        instances = sample.pred_instances
        match = instances.labels[:, None] == instances.labels.new_tensor(list(self.class_mapping))
        instances = instances[match.any(dim=1)]
        instances.labels = match[match.any(dim=1)].int().argmax(dim=1)
        sample.pred_instances = instances

    def check_cache(self, student: nn.Module, dataset_cfg: Mapping, dataset) -> None:
        """Check that the cache was made from this teacher and these data; it is not read before.

        Args:
            student: The student network.
            dataset_cfg: The config of the training data.
            dataset: The training data.

        Raises:
            MMKDError: If it was not, or lacks some of their views.
        """
        self.cache.check(fingerprint_of(self, student, dataset_cfg, dataset), getattr(dataset, 'views', None))

    def __call__(self,
                 inputs: Tensor,
                 data_samples: Sequence,
                 rois: Sequence[Tensor] | None = None,
                 spots: Sequence[str] | None = None) -> dict[str, list]:
        """Look at the student's batch.

        Args:
            inputs: The student's preprocessed batch ``(N, 3, H, W)``.
            data_samples: Its samples; only ``img_shape`` is read, and of detectors only.
            rois: The student's boxes ``(R, 5)`` of every stage, when :meth:`needs_rois`.
            spots: What is asked for; all that it was connected for by default.

        Returns:
            dict: By spot, the list of what was seen there; class logits in the student's classes.
        """
        if self.cache is not None:
            logits = self.cache.read_samples(data_samples).to(inputs.device)
            return {spot: [logits] for spot in (self.inference.points if spots is None else spots)}
        return self.forward(inputs, data_samples, rois, spots)

    @torch.no_grad()
    def forward(self,
             inputs: Tensor,
             data_samples: Sequence,
             rois: Sequence[Tensor] | None = None,
             spots: Sequence[str] | None = None) -> dict[str, list]:
        """Run the network, whether or not there is a cache of the training images; see :meth:`__call__`."""
        spots = tuple(self.inference.points) if spots is None else spots
        if not spots:
            return {}
        with _batch_statistics(self.model) if self.batch_norm == 'train' else nullcontext():
            seen = self.inference.record(spots, self.convert(inputs, data_samples), rois)
        if 'cls_outputs' in seen:
            seen['cls_outputs'] = self.in_students_outputs(seen['cls_outputs'])
        if 'cls_logits' in seen:
            of_images = is_classifier(self.model)
            outputs = [one if of_images else (one, ) for one in seen['cls_logits']]
            seen['cls_logits'] = [
                one if of_images else one[0] for one in self.in_students_outputs(outputs)]
        return seen

    def run_frozen_head(self, inputs: Sequence[tuple]) -> list:
        """Run the classification head such that gradients reach what it is given.

        Args:
            inputs: Arguments of every call, as recorded at ``cls_inputs``.

        Returns:
            list: Head outputs in the student's classes.
        """
        heads = classification_heads(self.model)
        if len(heads) == 1:
            heads = heads * len(inputs)
        return self.in_students_outputs(
            [head(*args) for head, args in zip(heads, inputs, strict=False)])

    def classify_map(self, features: Tensor) -> list:
        """Classify a map ``(N, C, H, W)`` in place of the backbone's last one; gradients reach the map."""
        return self.in_students_outputs([classify_map(self.model, features)])

    def convert(self, inputs: Tensor, data_samples: Sequence) -> Tensor:
        """Return the student's batch as this teacher expects it."""
        return self._converter(inputs, image_shapes(self.model, inputs, data_samples))

    def apply(self, function) -> None:
        """Move or cast the teacher like a module; used when the student is moved."""
        self.model._apply(function)

    def describe(self) -> str:
        """Return one line for the log."""
        number = sum(parameter.numel() for parameter in self.model.parameters())
        return (f'{type(self.model).__name__} with {number / 1e6:.1f} M parameters from '
                f'{self.checkpoint!r}')


@contextmanager
def _batch_statistics(model: nn.Module):
    """Let batch norm use the statistics of batches inside the block, and forget them."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.momentum = True, 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.training, norm.momentum = False, momentum


def _class_names(meta: Mapping) -> tuple[str, ...] | None:
    names = {key.lower(): value for key, value in (meta.get('dataset_meta') or meta).items()}
    classes = names.get('classes')
    return tuple(classes) if classes else None


def build_teachers(cfg: dict | Sequence[dict] | None) -> list[Teacher]:
    """Build no, one or several teachers from their configs, with clear words for wrong keys."""
    if cfg is None:
        return []
    teachers = [_build_teacher(one) for one in (cfg if isinstance(cfg, (list, tuple)) else [cfg])]
    for teacher in teachers:
        print_log(f'Teacher: {teacher.describe()}.', 'current')
    return teachers


def _build_teacher(cfg: dict) -> Teacher:
    if not isinstance(cfg, dict):
        raise MMKDError('`teacher` must be a dict with `config` and `checkpoint`, or a list of such dicts.')
    cfg = copy.deepcopy(dict(cfg))
    known = set(inspect.signature(Teacher).parameters)
    if unknown := set(cfg) - known:
        raise MMKDError(f'`teacher` does not know {sorted(unknown)}; it takes {sorted(known)}.')
    if 'config' not in cfg:
        raise MMKDError('`teacher` needs a `config`.')
    return Teacher(**cfg)
