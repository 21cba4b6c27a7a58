"""Detectors that learn from a teacher besides the ground truth."""
import copy
from collections.abc import Mapping, Sequence

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor

from ...errors import MMKDError
from ...registry import MODELS
from ..random_state import preserved_random_state
from .distillation import Distillation


class DistilledDetector:
    """Mix-in in front of a detector's class: the detector's own loss, plus distillation.

    The detector stays what it is: parameter names, ``predict``, ``extract_feat`` and all attributes are
    its own. There is one more child module, ``mmkd``.
    """

    def attach(self, student_cfg: dict, teacher: dict | Sequence[dict] | None,
               methods: Mapping[str, dict]) -> None:
        """Add the teacher and the methods; see :func:`DetectorDistiller`."""
        with preserved_random_state():
            self.mmkd = Distillation(self, student_cfg, teacher, methods)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict:
        """Return the detector's own losses and those of the methods.

        Args:
            batch_inputs: Preprocessed images ``(N, 3, H, W)``.
            batch_data_samples: Their :class:`DetDataSample`.
        """
        with self.mmkd.recorder(self) as recorder:
            losses = super().loss(batch_inputs, batch_data_samples)
        return self.mmkd.loss(self, recorder, batch_inputs, batch_data_samples, losses)


@MODELS.register_module()
def DetectorDistiller(student: dict,
                      methods: Mapping[str, dict],
                      teacher: dict | Sequence[dict] | None = None,
                      data_preprocessor: dict | None = None) -> BaseDetector:
    """Build a student detector that distils while it trains.

    Args:
        student: The student's model config, unchanged from MMDetection.
        methods: Configs of methods by names of your own; the names become log keys.
        teacher: ``config``, ``checkpoint`` and, where class lists differ, ``class_mapping``; see
            :class:`~mmkd.models.teachers.Teacher`. A list for several teachers; nothing where no method
            needs one (``DML``).
        data_preprocessor: Taken when the student's config has none (MMEngine hands over one that stands
            at the top of a config).

    Returns:
        BaseDetector: An instance of the student's own class, extended by :class:`DistilledDetector`.

    Raises:
        MMKDError: If student, teacher and methods do not fit; nothing has been trained then.
    """
    if not methods:
        raise MMKDError('`methods` is empty: name at least one, such as '
                        "dict(shake=dict(type='mmkd.SHAKE')).")
    student_cfg = copy.deepcopy(student)
    if data_preprocessor is not None:
        student_cfg.setdefault('data_preprocessor', data_preprocessor)
    pristine = copy.deepcopy(student_cfg)
    kind = student_cfg.pop('type', None)
    with MMDET_MODELS.switch_scope_and_registry(student_cfg.pop('_scope_', None)) as registry:
        detector = registry.get(kind) if isinstance(kind, str) else kind
    if detector is None:
        raise MMKDError(f'The student type {kind!r} is not registered in MMDetection.')
    if not (isinstance(detector, type) and issubclass(detector, BaseDetector)):
        raise MMKDError(f'The student type {kind!r} is no MMDetection detector.')
    extended = type(f'Distilled{detector.__name__}', (DistilledDetector, detector),
                    dict(__module__=__name__))
    model = extended(**student_cfg)
    model.attach(pristine, teacher, methods)
    return model
