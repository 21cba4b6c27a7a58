"""Default settings of methods that depend on what kind of network the student is."""
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...registry import MODELS
from ..spots import is_classifier, is_query_based, is_two_stage

_BALANCED_DETECTORS: Mapping[str, Mapping[str, Any]] = {
    kind: dict(balance='gradient') for kind in ('two-stage', 'dense', 'query-based')}

FAMILY_DEFAULTS: dict[str, Mapping[str, Mapping[str, Any]]] = dict(
    # The authors' weights for Faster, Mask, and Cascade R-CNN; the class has those for RetinaNet and GFL.
    FGD={'two-stage': dict(foreground=5e-5, background=2.5e-5, attention=5e-5, global_=5e-7)},
    # The authors' settings for Faster and Mask R-CNN, and for ImageNet; the class has those for RetinaNet.
    MGD={'two-stage': dict(weight=5e-7, mask_ratio=0.45),
         'classifier': dict(weight=7e-5, mask_ratio=0.15, mask='channels')},
    # mdistiller: 20 of 240 epochs on CIFAR-100; no warm-up, and other factors, on detectors.
    DKD={'two-stage': dict(beta=0.25, temperature=1.0),
         'classifier': dict(warmup=20 / 240)},
    ReviewKD={'classifier': dict(warmup=20 / 240)},
    RLD={'two-stage': dict(balance='gradient'),
         'classifier': dict(warmup=20 / 240)},
    # The authors weight the task loss by 0.1 on CIFAR-100; losses of detectors consist of more than classes.
    LSKD={'two-stage': dict(balance='gradient'),
          'classifier': dict(student_task=0.1)},
    CTKD={'two-stage': dict(balance='gradient'),
          'classifier': dict(student_task=0.1)},
    MLKD={'two-stage': dict(balance='gradient'),
          'classifier': dict(student_task=0.1)},
    WTTM={'two-stage': dict(balance='gradient')},
    # The authors' weight for ImageNet and CIFAR-100.
    DIST={'classifier': dict(weight=2.0)},
    # No weight is published for the distances that it has.
    BoxDistill={'two-stage': dict(balance='gradient')},
    # Published for classifiers only.
    AT=_BALANCED_DETECTORS,
    FT=_BALANCED_DETECTORS,
    FitNet=_BALANCED_DETECTORS,
    NST=_BALANCED_DETECTORS,
    SP=_BALANCED_DETECTORS,
    VID=_BALANCED_DETECTORS)
"""Settings by the name of the method and by the kind of the student, see :func:`kind_of`.

Where authors published settings for several kinds of networks, they are here or the defaults of the class.
Where they published a weight for classifiers only, detectors are balanced instead (docs/balance.md).
"""

def kind_of(student: nn.Module) -> str:
    """Return which kind of network a student is, one of :data:`~mmkd.models.methods.table.TASKS`."""
    if is_classifier(student):
        return 'classifier'
    if is_query_based(student):
        return 'query-based'
    return 'two-stage' if is_two_stage(student) else 'dense'


def with_family_defaults(cfg: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Complete the config of a method by :data:`FAMILY_DEFAULTS`; what the config has stays.

    Args:
        cfg: The config of the method, with a ``type``. A method with a weight in its config is not balanced
            by default.
        kind: The kind of the student, see :func:`kind_of`.
    """
    method = cfg.get('type')
    if isinstance(method, str):
        method = MODELS.get(method)
    defaults = dict(FAMILY_DEFAULTS.get(getattr(method, '__name__', ''), {}).get(kind, {}))
    if 'weight' in cfg or 'protocol' in cfg:
        defaults.pop('balance', None)
    return {**defaults, **cfg}
