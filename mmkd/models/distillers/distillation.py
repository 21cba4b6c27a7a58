"""All that distillation adds to a student, in one module."""
from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from ...errors import MMKDError, nearest_names, one_line
from ...registry import MODELS
from ..methods import PRESETS, Method
from ..random_state import preserved_random_state
from ..spots import Recorder, resolve_spot
from ..teachers import build_teacher


class Distillation(BaseModule):
    """Methods and the teacher they learn from; the student's child module ``mmkd``.

    Args:
        student: The student network, built but not yet initialised.
        student_cfg: Its config.
        teacher: The teacher's config.
        methods: The methods' configs, by the user's names for them.

    Raises:
        MMKDError: If the pair or a method cannot work.
    """

    def __init__(self, student: nn.Module, student_cfg: dict, teacher: dict,
                 methods: Mapping[str, dict]) -> None:
        super().__init__()
        self.methods = ModuleDict({name: _build_method(name, cfg) for name, cfg in methods.items()})
        self.teacher = build_teacher(teacher)
        spots = _union(method.teacher_spots for method in self.methods.values())
        self.teacher.connect(student, spots)
        for method in self.methods.values():
            method.connect(student, self.teacher, student_cfg)
        spots = _union(method.student_spots for method in self.methods.values())
        self._rois_needed = self.teacher.needs_rois
        if self._rois_needed:
            spots = _union([spots, ['rois']])
        self._places = {spot: resolve_spot(student, spot, 'student') for spot in spots}

    def _apply(self, fn, *args, **kwargs):
        # The teacher is outside of the module tree, but lives on the student's device.
        self.teacher.apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def init_weights(self) -> None:
        # The same seed shall give the same batches and samples with and without distillation.
        with preserved_random_state():
            super().init_weights()

    @property
    def student_spots(self) -> list[str]:
        """All spots that are recorded in the student."""
        return list(self._places)

    def recorder(self, student: nn.Module) -> Recorder:
        """Return a recorder of all the spots that the methods asked for in the student."""
        return Recorder(student, self._places)

    def loss(self, recorder: Recorder, inputs: Tensor, data_samples: Sequence) -> dict[str, Tensor]:
        """Ask the teacher about a batch and return the losses of all methods.

        Args:
            recorder: What was seen of the student.
            inputs: The student's preprocessed batch ``(N, 3, H, W)``.
            data_samples: Its samples.

        Returns:
            dict: ``<method>.<loss>`` and other values to log, all scalars.
        """
        student = {spot: recorder[spot] for spot in self._places}
        for spot, seen in student.items():
            if not seen:
                raise MMKDError(f"The spot {spot!r} was not reached in the student's training step.")
            if spot != 'rois' and torch.is_grad_enabled():
                _check_gradient(spot, seen)
        rois = student['rois'][0] if self._rois_needed else None
        teacher = self.teacher(inputs, data_samples, rois)
        return {f'{name}.{key}': value for name, method in self.methods.items()
                for key, value in method(student, teacher).items()}


def _build_method(name: str, cfg: dict) -> Method:
    if '.' in name or hasattr(ModuleDict, name):
        raise MMKDError(f'A method cannot be called {name!r}; choose another key in `methods`.')
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    if kind is None:
        raise MMKDError(f'The method {name!r} needs a dict with a `type`, such as '
                        "dict(type='mmkd.SHAKE').")
    if isinstance(kind, str) and MODELS.get(kind) is None:
        known = [*PRESETS, 'ProxyDistill', 'FeatureDistill']
        raise MMKDError(f'There is no method {kind!r}{nearest_names(kind.split(".")[-1], known)}; '
                        f'known are {", ".join(known)}.')
    try:
        method = MODELS.build(cfg)
    except (KeyError, TypeError) as error:
        raise MMKDError(f'The method {name!r} has a wrong setting ({one_line(error)}).') from None
    if not isinstance(method, Method):
        raise MMKDError(f'{kind!r} (in methods.{name}) is a {type(method).__name__}, not a method.')
    return method


def _check_gradient(spot: str, seen: list) -> None:
    for value in seen:
        for tensor in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(tensor, Tensor) and not tensor.requires_grad:
                raise MMKDError(
                    f'What the student gives at the spot {spot!r} carries no gradient, so distilling '
                    'there would teach nothing: the layers before it are frozen, or it lies inside a '
                    'part under reentrant activation checkpointing.')


def _union(groups) -> list[str]:
    return list(dict.fromkeys(spot for group in groups for spot in group))
