"""The frozen teacher."""
import copy
from collections.abc import Mapping, Sequence

import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...errors import MMKDError
from ..spots import Place, Recorder, resolve_spot
from .building import RANDOM, build_teacher_model, read_teacher_config
from .normalization import BatchConverter


class Teacher:
    """A frozen detector that is asked for features and logits, and for nothing else.

    It is no ``nn.Module``, so that a student that holds it has none of it among its parameters, buffers,
    checkpoints and gradient traffic. Copies of the student share it.

    Args:
        config: See :func:`~mmkd.models.teachers.building.read_teacher_config`.
        checkpoint: Path or URL of its weights, or ``'random'``.
        class_mapping: Where the class lists differ: for each class of the student, in order, the index
            of the teacher's class.

    Raises:
        MMKDError: If it cannot be built, or is no detector.
    """

    def __init__(self,
                 config: str | dict,
                 checkpoint: str | None = None,
                 class_mapping: Sequence[int] | None = None) -> None:
        self.cfg = read_teacher_config(config)
        self.checkpoint = checkpoint
        self.class_mapping = class_mapping
        self.model, meta = build_teacher_model(self.cfg, checkpoint)
        if not isinstance(self.model, BaseDetector):
            raise MMKDError(f'The teacher {type(self.model).__name__} is no MMDetection detector; '
                            'a detector can only be taught by one.')
        self.classes = _class_names(meta)
        self._mapping = None
        self._converter = None
        self._places: dict[str, Place] = {}

    def __deepcopy__(self, memo) -> 'Teacher':
        return self

    @property
    def is_random(self) -> bool:
        return self.checkpoint == RANDOM

    def connect(self, student: nn.Module, spots: Sequence[str]) -> None:
        """Prepare for a student.

        Args:
            student: The student detector; its data preprocessor tells what batches look like.
            spots: All spots that will be asked for.

        Raises:
            MMKDError: If the teacher lacks one of them.
        """
        self._converter = BatchConverter(student.data_preprocessor, self.model.data_preprocessor)
        self._places = {spot: resolve_spot(self.model, spot, 'teacher') for spot in spots}

    @property
    def needs_rois(self) -> bool:
        """Whether the student's boxes are needed for what is asked of this teacher."""
        return any(place.module.split('.')[0] == 'roi_head' for place in self._places.values())

    def check_same_classes(self, student: nn.Module) -> None:
        """Check that both networks' logits speak of the same classes.

        Raises:
            MMKDError: If the numbers of classes differ and there is no mapping, or the mapping is wrong.
        """
        resolve_spot(student, 'cls_logits', 'student')
        resolve_spot(self.model, 'cls_logits', 'teacher')
        of_student = student.roi_head.bbox_head.num_classes
        of_teacher = self.model.roi_head.bbox_head.num_classes
        if self.class_mapping is None:
            if of_student != of_teacher:
                raise MMKDError(
                    f'The teacher knows {of_teacher} classes and the student {of_student}; give '
                    'teacher.class_mapping, the index of the teacher\'s class for each of the student\'s.')
            return
        mapping = list(self.class_mapping)
        if len(mapping) != of_student or not all(
                isinstance(index, int) and 0 <= index < of_teacher for index in mapping):
            raise MMKDError(f'teacher.class_mapping must hold {of_student} indices below {of_teacher}, '
                            f'not {mapping}.')
        self._mapping = torch.tensor([*mapping, of_teacher])  # the background comes last

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

    def in_students_classes(self, instances: InstanceData) -> InstanceData:
        """Return detections of this teacher, labelled as the student's classes; others are left out."""
        if self.class_mapping is None:
            return instances
        match = instances.labels[:, None] == instances.labels.new_tensor(list(self.class_mapping))
        instances = instances[match.any(dim=1)]
        instances.labels = match[match.any(dim=1)].int().argmax(dim=1)
        return instances

    @torch.no_grad()
    def __call__(self, inputs: Tensor, data_samples: Sequence, rois: Tensor | None) -> Mapping:
        """Look at the student's batch.

        Args:
            inputs: The student's preprocessed batch ``(N, 3, H, W)``.
            data_samples: Its samples; only ``img_shape`` is read.
            rois: The student's boxes ``(R, 5)``, when :attr:`needs_rois`.

        Returns:
            Mapping: By spot, the list of what was seen there.
        """
        inputs = self._converter(inputs, [sample.img_shape for sample in data_samples])
        with Recorder(self.model, self._places) as recorder:
            features = self.model.extract_feat(inputs)
            if self.needs_rois:
                self._judge(features, rois)
        seen = {spot: recorder[spot] for spot in self._places}
        if self._mapping is not None and 'cls_logits' in seen:
            self._mapping = self._mapping.to(inputs.device)
            seen['cls_logits'] = [logits[:, self._mapping] for logits in seen['cls_logits']]
        return seen

    def _judge(self, features: Sequence[Tensor], rois: Tensor) -> None:
        """Run the RoI classification head on given boxes and this teacher's own features."""
        head = self.model.roi_head
        extractor = head.bbox_roi_extractor
        roi_features = extractor(features[:extractor.num_inputs], rois)
        if head.with_shared_head:
            roi_features = head.shared_head(roi_features)
        head.bbox_head(roi_features)

    def apply(self, function) -> None:
        """Move or cast the teacher like a module; used when the student is moved."""
        self.model._apply(function)

    def describe(self) -> str:
        """Return one line for the log."""
        number = sum(parameter.numel() for parameter in self.model.parameters())
        return (f'{type(self.model).__name__} with {number / 1e6:.1f} M parameters from '
                f'{self.checkpoint!r}')


def _class_names(meta: Mapping) -> tuple[str, ...] | None:
    names = {key.lower(): value for key, value in (meta.get('dataset_meta') or meta).items()}
    classes = names.get('classes')
    return tuple(classes) if classes else None


def build_teacher(cfg: dict) -> Teacher:
    """Build a teacher from its config, with clear words for wrong keys."""
    if not isinstance(cfg, dict):
        raise MMKDError('`teacher` must be a dict with `config` and `checkpoint`; several teachers are '
                        'not there yet.')
    cfg = copy.deepcopy(dict(cfg))
    known = {'config', 'checkpoint', 'class_mapping'}
    if unknown := set(cfg) - known:
        raise MMKDError(f'`teacher` does not know {sorted(unknown)}; it takes {sorted(known)}.')
    if 'config' not in cfg:
        raise MMKDError('`teacher` needs a `config`.')
    teacher = Teacher(**cfg)
    print_log(f'Teacher: {teacher.describe()}.', 'current')
    return teacher
