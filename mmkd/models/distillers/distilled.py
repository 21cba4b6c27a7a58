"""A network's own class, extended: what the distillers of all tasks share."""
import copy
from collections.abc import Mapping, Sequence

from mmengine.registry import Registry
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import preserved_random_state
from .distillation import Distillation


class Distilled:
    """Mix-in in front of a network's class: the network's own loss, plus distillation.

    The network stays what it is: parameter names, ``predict``, ``extract_feat`` and all attributes are its
    own. There is one more child module, ``mmkd``.
    """

    def attach(self, student_cfg: dict, teacher: dict | Sequence[dict] | None,
               methods: Mapping[str, dict]) -> None:
        """Add the teacher and the methods; see :func:`build_distilled`."""
        with preserved_random_state():
            self.mmkd = Distillation(self, student_cfg, teacher, methods)
        self._register_load_state_dict_pre_hook(_keep_our_names)

    def init_weights(self) -> None:
        # A rule for the whole network (`init_cfg` of the model) is the student's, and not for what is added.
        mmkd = self._modules.pop('mmkd')
        try:
            super().init_weights()
        finally:
            self._modules['mmkd'] = mmkd
        mmkd.init_weights()

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Return the network's own losses and those of the methods.

        Args:
            inputs: Preprocessed images ``(N, 3, H, W)``.
            data_samples: Their samples.
        """
        with self.mmkd.recorder(self) as recorder:
            losses = super().loss(inputs, data_samples)
        return self.mmkd.loss(self, recorder, inputs, data_samples, losses)


def build_distilled(student: dict,
                    methods: Mapping[str, dict],
                    teacher: dict | Sequence[dict] | None,
                    data_preprocessor: dict | None,
                    registry: Registry,
                    base: type,
                    kind: str) -> nn.Module:
    """Build a student that distils while it trains.

    Args:
        student: The student's model config.
        methods: Configs of methods by the user's names.
        teacher: One teacher, a list of them, or ``None``.
        data_preprocessor: Taken when the student's config has none.
        registry: Where the student's class is found.
        base: What that class must be derived from.
        kind: How messages call such a student, for instance ``'MMDetection detector'``.

    Returns:
        nn.Module: An instance of the student's own class, extended by :class:`Distilled`.

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
    name = student_cfg.pop('type', None)
    with registry.switch_scope_and_registry(student_cfg.pop('_scope_', None)) as found:
        own = found.get(name) if isinstance(name, str) else name
    if own is None:
        raise MMKDError(f'The student type {name!r} is not registered in {kind.split()[0]}.')
    if not (isinstance(own, type) and issubclass(own, base)):
        raise MMKDError(f'The student type {name!r} is no {kind}.')
    extended = type(f'Distilled{own.__name__}', (Distilled, own), dict(__module__=__name__))
    model = extended(**student_cfg)
    model.attach(pristine, teacher, methods)
    return model


def _keep_our_names(state_dict: dict, prefix: str, *_) -> None:
    """Undo, for what distillation added, the renaming by which MMPretrain loads networks of timm."""
    for name in [name for name in state_dict if name.startswith(f'{prefix}model.mmkd.')]:
        state_dict[prefix + name.removeprefix(f'{prefix}model.')] = state_dict.pop(name)
