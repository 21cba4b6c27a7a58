"""Detectors that learn from a teacher besides the ground truth."""
from collections.abc import Mapping, Sequence
from typing import Literal

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS as MMDET_MODELS

from ...registry import MODELS
from .distilled import build_distilled


@MODELS.register_module()
def DetectorDistiller(student: dict,
                      methods: Mapping[str, dict],
                      teacher: dict | Sequence[dict] | None = None,
                      data_preprocessor: dict | None = None,
                      balance: Literal['gradient', 'none'] | None = None) -> BaseDetector:
    """Build a student detector that distills while it trains.

    Args:
        student: The student's model config, unchanged from MMDetection.
        methods: The configs of the methods by names of your choice; the names become log keys.
        teacher: ``config``, ``checkpoint`` and, where class lists differ, ``class_mapping``; see
            :class:`~mmkd.models.teachers.Teacher`. A list for several teachers; ``None`` if no method needs a
            teacher (``DML``).
        data_preprocessor: The data preprocessor of a student whose config has none; MMEngine passes on that
            of the top level of a config.
        balance: The key ``balance`` of all methods whose configs have none: ``'gradient'`` replaces their
            weights by a share of the task's gradient, ``'none'`` leaves the weights as they are. By default,
            every method decides; see :class:`~mmkd.models.distillers.balancing.GradientBalance`.

    Returns:
        BaseDetector: An instance of the student's class, extended by
        :class:`~mmkd.models.distillers.distilled.Distilled`.

    Raises:
        MMKDError: If the student, the teacher and the methods do not fit together.
    """
    return build_distilled(student, methods, teacher, data_preprocessor, balance, MMDET_MODELS, BaseDetector,
                           'MMDetection detector')
