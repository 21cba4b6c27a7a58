"""The frozen teacher."""
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import zip_longest
from typing import Any, Literal

import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import MMKDError, SettingError
from ...settings import NonNegativeInt, checked
from ..spots import (
    HookPoint,
    LogitLayout,
    check_comparable,
    classification_heads,
    classify_map,
    is_classifier,
    is_query_based,
    logit_layout,
    resolve_spot,
)
from ..spots.probing import run
from ..spots.queries import blank_samples
from .building import RANDOM, build_teacher_model, read_teacher_config
from .cache import TeacherCache, check_spots
from .class_mapping import ClassMapping
from .inference import TeacherForward
from .nan_layers import record_nan_layers
from .normalization import BatchConverter, image_shapes


@checked
class Teacher:
    """A frozen network that computes the features and logits that methods ask for, and nothing else.

    It is not an ``nn.Module``, so it is not part of the parameters, buffers, checkpoints and gradient traffic
    of the student that holds it. Copies of the student share it.

    :meth:`build` comes first, and calls that need it raise an error otherwise. After that, methods declare in
    any order what they need: :meth:`require_same_size`, :meth:`require_logits`, :meth:`add_spots`.

    Args:
        config: See :func:`~mmkd.models.teachers.building.read_teacher_config`.
        checkpoint: Path or URL of the weights, or ``'random'``.
        class_mapping: Where the class lists differ: for each class of the student, in order, the index
            of the teacher's class.
        batch_norm: ``'eval'``, or ``'train'``: batch norm uses the statistics of the batch, as in SOKD's
            released code. (There the running statistics are updated, which has no effect on training; here
            they stay as they were loaded.)
        channels_last: Whether the network runs with the memory format ``torch.channels_last``.
        precision: ``'fp32'``, ``'bf16'`` or ``'fp16'``, see
            :class:`~mmkd.models.teachers.inference.TeacherForward`.
        compile: Whether to compile the network with ``torch.compile``.
        cache: Classifiers: a folder with the class logits of the training images, which are read instead of
            running the network; see :class:`~mmkd.models.teachers.cache.TeacherCache`.

    Raises:
        MMKDError: If the network cannot be built, or is neither a detector nor a classifier.
    """

    def __init__(self,
                 config: str | dict,
                 checkpoint: str | None = None,
                 class_mapping: Sequence[NonNegativeInt] | None = None,
                 batch_norm: Literal['eval', 'train'] = 'eval',
                 channels_last: bool = True,
                 precision: Literal['fp32', 'bf16', 'fp16'] = 'fp32',
                 compile: bool = False,
                 cache: str | None = None) -> None:
        self.batch_norm = batch_norm
        self.cfg = read_teacher_config(config)
        self.checkpoint = checkpoint
        self.class_mapping = ClassMapping(class_mapping)
        self.cache = None if cache is None else TeacherCache(cache)
        self.model, meta = build_teacher_model(self.cfg, checkpoint)
        if not isinstance(self.model, BaseDetector) and not is_classifier(self.model):
            raise MMKDError(f'The teacher {type(self.model).__name__} is neither an MMDetection detector nor '
                            'an MMPretrain classifier.')
        if self.cache is not None and not is_classifier(self.model):
            raise MMKDError('teacher.cache holds logits of whole images, so it is for classifiers only.')
        self.classes = _class_names(meta)
        self.inference = TeacherForward(self.model, channels_last, precision, compile)
        self._converter: BatchConverter | None = None

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self

    @property
    def scope(self) -> str:
        """The registry scope of the teacher's config."""
        return self.cfg.default_scope

    @property
    def is_random(self) -> bool:
        """Whether the teacher has random weights."""
        return self.checkpoint == RANDOM

    @property
    def converter(self) -> BatchConverter:
        """The conversion of the student's batches, known after :meth:`build`."""
        if self._converter is None:
            raise MMKDError('The teacher has not been built for a student; call teacher.build first.')
        return self._converter

    def build(self, student: nn.Module) -> None:
        """Prepare the teacher for the batches of a student.

        Args:
            student: The student network; its data preprocessor defines the format of the batches.

        Raises:
            MMKDError: If the teacher is for a different task, the normalization of its images is unknown, or
                the student's batches cannot be converted into the teacher's.
        """
        if is_classifier(student) != is_classifier(self.model):
            kind = 'MMPretrain classifier' if is_classifier(student) else 'MMDetection detector'
            raise MMKDError(f'The teacher {type(self.model).__name__} is not an {kind}, but the student is.')
        # A preprocessor without mean and std (YOLOX) is intended; no preprocessor means an incomplete config.
        if self.cfg.model.get('data_preprocessor') is None and getattr(
                student.data_preprocessor, '_enable_normalize', False):
            raise MMKDError("The student's images are normalized, but the teacher's config has no "
                            'data_preprocessor, so the normalization of its images is unknown; add the '
                            'data_preprocessor that it was trained with, with its mean and std.')
        self._converter = BatchConverter(student.data_preprocessor, self.model.data_preprocessor)

    def add_spots(self, spots: Sequence[str]) -> None:
        """Resolve spots, so that they can be recorded.

        Raises:
            MMKDError: If the teacher lacks one of them.
        """
        if self.cache is not None:
            check_spots(spots)
        self.inference.points.update({spot: resolve_spot(self.model, spot, 'teacher') for spot in spots})

    def needs_rois(self, spots: Sequence[str]) -> bool:
        """Whether the student's boxes are needed to record some spots."""
        return any(module.split('.')[0] == 'roi_head'
                   for spot in spots for module in self.inference.points[spot].modules)

    def require_same_size(self) -> None:
        """Keep the height and width of the student's batch, so that feature maps can be compared by position.

        Raises:
            MMKDError: If :meth:`build` has not been called.
        """
        self.converter.keep_size = True

    def require_logits(self, student: LogitLayout) -> LogitLayout:
        """Require class logits, in the student's classes, that can be compared with the student's logits.

        Args:
            student: The layout of the student's logits.

        Returns:
            LogitLayout: The layout of the teacher's logits.

        Raises:
            MMKDError: If the logits cannot be compared, the classes differ without a mapping, or the cache
                holds logits of a different number of classes.
        """
        if self.cache is not None and self.cache.classes != student.num_classes:
            raise MMKDError(f'The teacher cache {self.cache.folder!r} holds logits of {self.cache.classes} '
                            f'classes, but the student has {student.num_classes}; make a new cache with '
                            'tools/misc/cache_teacher.py.')
        layout = logit_layout(self.model, 'teacher')
        check_comparable(student, layout)
        if layout.dense:
            self.require_same_size()
        self.class_mapping.compare(student, layout)
        return layout

    def check_class_names(self, student_classes: Sequence[str] | None) -> None:
        """Check the student's class names against the names stored in the teacher's checkpoint.

        Raises:
            MMKDError: If they differ and there is no class mapping.
        """
        if not self.class_mapping.is_identity or not self.classes or not student_classes:
            return
        for index, (teacher, student) in enumerate(zip_longest(self.classes, student_classes)):
            if teacher != student:
                raise MMKDError(
                    f'The class lists differ from class {index} on: the teacher was trained on '
                    f'{list(self.classes[index:index + 3])}, the student is trained on '
                    f'{list(student_classes[index:index + 3])}; set teacher.class_mapping, or train with the '
                    'same list.')

    def __call__(self, inputs: Tensor, data_samples: Sequence, rois: Sequence[Tensor] | None = None,
                 spots: Sequence[str] | None = None) -> dict[str, list]:
        """Return what the teacher computes for the student's batch, from its cache if there is one.

        Args:
            inputs: The student's preprocessed batch ``(N, 3, H, W)``.
            data_samples: Its samples; of detectors, only ``img_shape`` is read, of classifiers with a cache
                ``view`` and ``sample_idx``.
            rois: The student's boxes ``(R, 5)`` as (image, x1, y1, x2, y2) of every cascade stage, if
                :meth:`needs_rois`.
            spots: What to record; by default, all spots that were added.

        Returns:
            dict: By spot, the list of recorded values; class logits in the student's classes.
        """
        if self.cache is not None:
            logits = self.cache.read_samples(data_samples).to(inputs.device)
            return {spot: [logits] for spot in (self.inference.points if spots is None else spots)}
        return self.forward(inputs, data_samples, rois, spots)

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: Sequence, rois: Sequence[Tensor] | None = None,
                spots: Sequence[str] | None = None) -> dict[str, list]:
        """Run the network, even if there is a cache; see :meth:`__call__`."""
        spots = tuple(self.inference.points) if spots is None else spots
        if not spots:
            return {}
        with _batch_statistics(self.model) if self.batch_norm == 'train' else nullcontext():
            inputs = self.convert(inputs, data_samples)
            samples = self._samples(inputs, data_samples) if is_query_based(self.model) else None
            outputs = self.inference.record(spots, inputs, rois, samples)
        # Where no method compares logits, they stay in the teacher's classes.
        if self.class_mapping.maps_outputs:
            if 'cls_outputs' in outputs:
                outputs['cls_outputs'] = self.class_mapping.outputs(outputs['cls_outputs'])
            if 'cls_logits' in outputs:
                outputs['cls_logits'] = self.class_mapping.logits(outputs['cls_logits'])
        return outputs

    def _samples(self, inputs: Tensor, data_samples: Sequence) -> list:
        """Return samples without objects for a converted batch, for query-based detectors."""
        return blank_samples(inputs, [sample.img_shape[:2] for sample in data_samples])

    def run_frozen_head(self, inputs: Sequence[tuple]) -> list:
        """Run the classification head such that gradients reach its inputs.

        Args:
            inputs: Arguments of every call, as recorded at ``cls_inputs``.

        Returns:
            list: Head outputs in the student's classes.
        """
        heads = classification_heads(self.model)
        if len(heads) == 1:
            heads = heads * len(inputs)
        return self.class_mapping.outputs([head(*args) for head, args in zip(heads, inputs, strict=False)])

    def classify_map(self, features: Tensor) -> list:
        """Classify a feature map ``(N, C, H, W)`` in place of the backbone's last; gradients reach the map.

        Returns:
            list: Head outputs in the student's classes.
        """
        return self.class_mapping.outputs([classify_map(self.model, features)])

    def convert(self, inputs: Tensor, data_samples: Sequence) -> Tensor:
        """Return the student's batch as the teacher expects it.

        Raises:
            MMKDError: If :meth:`build` has not been called.
        """
        return self.converter(inputs, image_shapes(self.model, inputs, data_samples))

    @torch.no_grad()
    def find_nan(self, inputs: Tensor, data_samples: Sequence) -> str | None:
        """Return the name of the first layer that computes NaN on the student's batch, or ``None``.

        Of a detector, only backbone and neck are run. A cache holds no NaN.
        """
        if self.cache is not None:
            return None
        head = dict(head=HookPoint('head')) if is_classifier(self.model) else {}
        with record_nan_layers(self.model) as layers:
            run(self.model, head, self.convert(inputs, data_samples))
        return layers[0] if layers else None

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the teacher like a module; used when the student is moved."""
        self.model._apply(function)

    def describe(self) -> str:
        """Return one line for the log."""
        number = sum(parameter.numel() for parameter in self.model.parameters())
        return f'{type(self.model).__name__} with {number / 1e6:.1f} M parameters from {self.checkpoint!r}'


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norm use batch statistics inside the block, without updating the running statistics."""
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
    """Build the teachers of a config: one, several or none.

    Raises:
        MMKDError: If a config has unknown or missing keys.
    """
    if cfg is None:
        return []
    if isinstance(cfg, (list, tuple)):
        teachers = [_build_teacher(entry, f'model.teacher.{index}') for index, entry in enumerate(cfg)]
    else:
        teachers = [_build_teacher(cfg, 'model.teacher')]
    for teacher in teachers:
        print_log(f'Teacher: {teacher.describe()}.', 'current')
    return teachers


def _build_teacher(cfg: Any, key: str) -> Teacher:
    if not isinstance(cfg, dict):
        raise MMKDError('`teacher` must be a dict with `config` and `checkpoint`, or a list of such dicts.')
    cfg = copy.deepcopy(dict(cfg))
    try:
        return Teacher(**cfg)
    except SettingError as error:
        raise error.inside(key) from None
