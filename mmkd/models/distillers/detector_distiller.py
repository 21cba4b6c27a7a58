"""Detectors that learn from a teacher besides the ground truth."""
from collections.abc import Mapping, Sequence

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS as MMDET_MODELS

from ...registry import MODELS
from .distilled import build_distilled


@MODELS.register_module()
def DetectorDistiller(student: dict,
                      methods: Mapping[str, dict],
                      teacher: dict | Sequence[dict] | None = None,
                      data_preprocessor: dict | None = None) -> BaseDetector:
    """Build a student detector that distills while it trains.

    Args:
        student: The student's model config, unchanged from MMDetection.
        methods: The configs of the methods by names of your choice; the names become log keys.
        teacher: ``config``, ``checkpoint`` and, where class lists differ, ``class_mapping``; see
            :class:`~mmkd.models.teachers.Teacher`. A list for several teachers; ``None`` if no method needs a
            teacher (``DML``).
        data_preprocessor: The data preprocessor of a student whose config has none; MMEngine passes on that
            of the top level of a config.

    Returns:
        BaseDetector: An instance of the student's class, extended by
        :class:`~mmkd.models.distillers.distilled.Distilled`.

    Raises:
        MMKDError: If the student, the teacher and the methods do not fit together.
    """
    return build_distilled(student, methods, teacher, data_preprocessor, MMDET_MODELS, BaseDetector,
                           'MMDetection detector')
