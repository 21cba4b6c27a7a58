"""Teachers whose class list differs from the student's."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import MMKDError
from ..spots import LogitLayout
from ..spots.logits import image_logits


class ClassMapping:
    """Maps class outputs and predictions of a teacher to the classes of the student.

    Predictions can be mapped at any time, outputs once :meth:`compare` has checked the mapping against the
    layouts of both networks.

    Args:
        indices: For each class of the student, in order, the index of the teacher's class; ``None`` if both
            have the same class list.
    """

    def __init__(self, indices: Sequence[int] | None = None) -> None:
        self.indices = None if indices is None else list(indices)
        self._layout: LogitLayout | None = None
        self._channels = torch.empty(0, dtype=torch.long)

    @property
    def is_identity(self) -> bool:
        """Whether both networks have the same class list."""
        return self.indices is None

    @property
    def maps_outputs(self) -> bool:
        """Whether outputs are in the student's classes: :meth:`compare` has been called."""
        return self.is_identity or self._layout is not None

    def compare(self, student: LogitLayout, teacher: LogitLayout) -> None:
        """Check this mapping against the classes of both networks; outputs can be mapped from then on.

        Args:
            student: The layout of the student's logits.
            teacher: The layout of the teacher's logits.

        Raises:
            MMKDError: If the numbers of classes differ and there is no mapping, or the mapping does not fit.
        """
        self.check_numbers(student.num_classes, teacher.num_classes)
        if self.indices is None:
            return
        self._layout = teacher
        self._channels = torch.tensor([*self.indices, *teacher.background])

    def check_numbers(self, student: int, teacher: int) -> None:
        """Check this mapping against the numbers of classes of both networks.

        Raises:
            MMKDError: If they differ and there is no mapping, or the mapping does not fit.
        """
        if self.indices is None:
            if student != teacher:
                raise MMKDError(
                    f'The teacher has {teacher} classes and the student {student}; set '
                    "teacher.class_mapping to the index of the teacher's class for each class of the "
                    'student.')
        elif len(self.indices) != student or not all(
                isinstance(index, int) and 0 <= index < teacher for index in self.indices):
            raise MMKDError(f'teacher.class_mapping must hold {student} indices below {teacher}, not '
                            f'{self.indices}.')

    def outputs(self, outputs: list) -> list:
        """Map outputs of the teacher's classification head.

        Args:
            outputs: One entry per call of a head, as recorded at ``cls_outputs``.

        Returns:
            list: The outputs with the student's classes; everything but the class logits is unchanged.
        """
        if self.is_identity or self._teacher_layout().of_images:
            return self.logits(outputs)
        mapped = self.logits([output[0] for output in outputs])
        return [(logits, *output[1:]) for logits, output in zip(mapped, outputs, strict=True)]

    def logits(self, logits: list) -> list:
        """Map class logits of the teacher.

        Args:
            logits: As recorded at ``cls_logits``: tensors ``(N, K)``, ``(R, K+1)`` or ``(L, N, Q, K)``, or of
                dense detectors lists of maps ``(N, A*K, H_l, W_l)``, with the teacher's K classes.

        Returns:
            list: The logits with the student's classes.
        """
        if self.is_identity:
            return logits
        layout = self._teacher_layout()
        if layout.of_images:
            logits = [image_logits(value) for value in logits]
        if not layout.dense:
            return [value[..., self._channels_for(value)] for value in logits]
        return [[level.unflatten(1, (-1, layout.channels))[:, :, self._channels_for(level)].flatten(1, 2)
                 for level in levels] for levels in logits]

    def sample(self, sample: Any) -> None:
        """Change a prediction of the teacher, in place, into a prediction of the student's classes.

        Detections of other classes are removed, and so are an image's scores of other classes.

        Args:
            sample (BaseDataElement): A data sample with ``pred_score`` (MMPretrain) or ``pred_instances``
                (MMDetection).
        """
        if self.indices is None:
            return
        if 'pred_score' in sample:
            scores = sample.pred_score[self.indices]
            sample.set_field(len(scores), 'num_classes', field_type='metainfo')  # checked below
            sample.set_pred_score(scores).set_pred_label(scores.argmax(dim=0, keepdim=True))
            return
        instances = sample.pred_instances
        match = instances.labels[:, None] == instances.labels.new_tensor(self.indices)
        known = match.any(dim=1)
        instances = instances[known]
        instances.labels = match[known].int().argmax(dim=1)
        sample.pred_instances = instances

    def _teacher_layout(self) -> LogitLayout:
        if self._layout is None:
            raise MMKDError('The class mapping of the teacher has not been compared with the student; call '
                            'teacher.require_logits when the method is built.')
        return self._layout

    def _channels_for(self, logits: Tensor) -> Tensor:
        self._channels = self._channels.to(logits.device)  # copied once
        return self._channels
