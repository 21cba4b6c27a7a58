"""Classifiers that learn from a teacher besides the labels."""
from collections.abc import Mapping, Sequence
from typing import Literal

from mmpretrain.models.classifiers import BaseClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from ...registry import MODELS
from .distilled import build_distilled


@MODELS.register_module()
def ClassifierDistiller(student: dict,
                        methods: Mapping[str, dict],
                        teacher: dict | Sequence[dict] | None = None,
                        data_preprocessor: dict | None = None,
                        balance: Literal['gradient', 'none'] | None = None) -> BaseClassifier:
    """Build a student classifier that distills while it trains.

    Args:
        student: The student's model config, unchanged from MMPretrain.
        methods: The configs of the methods by names of your choice; the names become log keys.
        teacher: ``config``, ``checkpoint`` and, where class lists differ, ``class_mapping``; see
            :class:`~mmkd.models.teachers.Teacher`. A list for several teachers; ``None`` if no method needs a
            teacher (``DML``).
        data_preprocessor: The data preprocessor of a student whose config has none. MMPretrain's configs
            have it at the top level, and MMEngine passes it on. A teacher has that of the teacher's config.
        balance: The key ``balance`` of all methods whose configs have none: ``'gradient'`` replaces their
            weights by a share of the task's gradient, ``'none'`` leaves the weights as they are. By default,
            every method decides; see :class:`~mmkd.models.distillers.balancing.GradientBalance`.

    Returns:
        BaseClassifier: An instance of the student's class, extended by
        :class:`~mmkd.models.distillers.distilled.Distilled`.

    Raises:
        MMKDError: If the student, the teacher and the methods do not fit together.
    """
    return build_distilled(student, methods, teacher, data_preprocessor, balance, MMPRETRAIN_MODELS,
                           BaseClassifier, 'MMPretrain classifier')
