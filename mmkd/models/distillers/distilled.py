"""The student's class, extended by distillation: what the distillers of all tasks share."""
import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import Registry
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import preserved_random_state
from .distillation import Distillation


class Distilled(BaseModel):
    """Mix-in in front of a network's class: adds the losses of distillation to the network's losses.

    Everything else is unchanged: parameter names, ``predict``, ``extract_feat`` and all attributes. There is
    one more child module, ``mmkd``.
    """

    def attach(self, student_cfg: dict, teacher: dict | Sequence[dict] | None,
               methods: Mapping[str, dict], balance: str | None) -> None:
        """Add the teacher and the methods; see :func:`build_distilled`."""
        with preserved_random_state():
            self.mmkd = Distillation(self, student_cfg, teacher, methods, balance)
        self._register_load_state_dict_pre_hook(_keep_mmkd_names)

    def init_weights(self) -> None:
        # A rule for the whole network (`init_cfg` of the model) is for the student, not for what is added.
        mmkd = self._modules.pop('mmkd')
        try:
            super().init_weights()
        finally:
            self._modules['mmkd'] = mmkd
        mmkd.init_weights()

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Return the losses of the network and of the methods.

        Args:
            inputs: Preprocessed images ``(N, 3, H, W)``.
            data_samples: The samples of the images.

        Returns:
            dict: The losses; the ``loss`` of a classifier is called ``loss_cls``, as in MMDetection.
        """
        with self.mmkd.recorder(self) as recorder:
            losses = self.task_losses(inputs, data_samples)
        return self.mmkd.losses(self, recorder, inputs, data_samples, losses)

    def task_losses(self, inputs: Tensor, data_samples: list) -> dict:
        """Return the losses of the network alone; see :meth:`loss`."""
        losses = super().loss(inputs, data_samples)
        # MMEngine logs the sum of all losses as `loss`, and a loss of that name would replace it in the log.
        return {'loss_cls' if name == 'loss' else name: value for name, value in losses.items()}


def build_distilled(student: dict,
                    methods: Mapping[str, dict],
                    teacher: dict | Sequence[dict] | None,
                    data_preprocessor: dict | None,
                    balance: str | None,
                    registry: Registry,
                    base: type,
                    kind: str) -> nn.Module:
    """Build a student that distills while it trains.

    Args:
        student: The student's model config.
        methods: The configs of the methods by the user's names.
        teacher: The config of a teacher, a list of configs, or ``None``.
        data_preprocessor: The data preprocessor of a student whose config has none.
        balance: The balance of methods whose configs have none.
        registry: The registry that holds the student's class.
        base: The class that the student's class must be derived from.
        kind: What error messages call such a student, for instance ``'MMDetection detector'``.

    Returns:
        nn.Module: An instance of the student's class, extended by :class:`Distilled`.

    Raises:
        MMKDError: If the student, the teacher and the methods do not fit together.
    """
    if not methods:
        raise MMKDError('`methods` is empty: name at least one, such as '
                        "dict(shake=dict(type='mmkd.SHAKE')).")
    model_cfg = copy.deepcopy(student)
    if data_preprocessor is not None:
        model_cfg.setdefault('data_preprocessor', data_preprocessor)
    student_cfg = copy.deepcopy(model_cfg)
    name = model_cfg.pop('type', None)
    with registry.switch_scope_and_registry(model_cfg.pop('_scope_', None)) as scoped_registry:
        student_class: Any = scoped_registry.get(name) if isinstance(name, str) else name
    if student_class is None:
        raise MMKDError(f'The student type {name!r} is not registered in {kind.split()[0]}.')
    if not (isinstance(student_class, type) and issubclass(student_class, base)):
        raise MMKDError(f'The student type {name!r} is not an {kind}.')
    bases = (Distilled, student_class)
    extended: Any = type(f'Distilled{student_class.__name__}', bases, dict(__module__=__name__))
    model = extended(**model_cfg)
    model.attach(student_cfg, teacher, methods, balance)
    return model


def _keep_mmkd_names(state_dict: dict, prefix: str, *_) -> None:
    """Keep the names under ``mmkd.``, which MMPretrain renames when it loads networks of timm."""
    for name in [name for name in state_dict if name.startswith(f'{prefix}model.mmkd.')]:
        state_dict[prefix + name.removeprefix(f'{prefix}model.')] = state_dict.pop(name)
