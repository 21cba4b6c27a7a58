"""Classifiers that learn from a teacher besides the labels."""
from collections.abc import Mapping, Sequence

from torch import nn

from ...errors import MMKDError
from ...registry import MODELS
from .distilled import build_distilled


@MODELS.register_module()
def ClassifierDistiller(student: dict,
                        methods: Mapping[str, dict],
                        teacher: dict | Sequence[dict] | None = None,
                        data_preprocessor: dict | None = None) -> nn.Module:
    """Build a student classifier that distils while it trains.

    Args:
        student: The student's model config, unchanged from MMPretrain.
        methods: Configs of methods by names of your own; the names become log keys.
        teacher: ``config``, ``checkpoint`` and, where class lists differ, ``class_mapping``; see
            :class:`~mmkd.models.teachers.Teacher`. A list for several teachers; nothing where no method
            needs one (``DML``).
        data_preprocessor: Taken when the student's config has none: MMPretrain's configs have it at their
            top, and MMEngine hands it over. The teacher's config resolves its own.

    Returns:
        mmpretrain.models.BaseClassifier: An instance of the student's own class, extended by
        :class:`~mmkd.models.distillers.distilled.Distilled`.

    Raises:
        MMKDError: If student, teacher and methods do not fit; nothing has been trained then.
    """
    try:
        from mmpretrain.models.classifiers import BaseClassifier
        from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
    except ImportError:
        raise MMKDError('Classifiers need MMPretrain; see docs/installation.md.') from None
    return build_distilled(student, methods, teacher, data_preprocessor, MMPRETRAIN_MODELS, BaseClassifier,
                           'MMPretrain classifier')
