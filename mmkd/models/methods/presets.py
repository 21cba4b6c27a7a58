"""The papers' names: thin settings of the method classes."""
from ...registry import MODELS
from .feature_distill import FeatureDistill
from .proxy_distill import ProxyDistill


@MODELS.register_module()
def KD(temperature: float = 4.0, weight: float = 1.0) -> ProxyDistill:
    """Knowledge distillation (Hinton et al., 2015): the student imitates the teacher's logits.

    Args:
        temperature: τ.
        weight: λ of KL(T‖S).
    """
    return ProxyDistill(temperature=temperature, proxy_to_student=weight)


@MODELS.register_module()
def SHAKE(temperature: float = 4.0,
          weight: float = 1.0,
          placement: str = 'student',
          tower: str = 'head') -> ProxyDistill:
    """Shadow knowledge distillation (Li and Jin, NeurIPS 2022), in the form of the paper's text.

    Args:
        temperature: τ.
        weight: λ of KL(sg S‖P) and KL(sg P‖S); KL(T‖P) has weight 1.
        placement: Where the shadow head stands, see :class:`~mmkd.models.proxies.ShadowHead`.
        tower: How much of the head it has of its own, see there.
    """
    return ProxyDistill(
        proxy=dict(type='mmkd.ShadowHead', placement=placement, tower=tower),
        temperature=temperature,
        teacher_to_proxy=1.0,
        student_to_proxy=weight,
        proxy_to_student=weight)


@MODELS.register_module()
def PKD(weight: float = 6.0, spot: str = 'neck') -> FeatureDistill:
    """Pearson knowledge distillation (Cao et al., NeurIPS 2022) on all levels of the neck.

    Args:
        weight: α.
        spot: Where to distil.
    """
    return FeatureDistill(loss=dict(type='mmkd.PKDLoss', weight=weight), spot=spot)


PRESETS = {preset.__name__: preset for preset in (KD, PKD, SHAKE)}
"""Presets by name; ``tools/train.py --distill`` takes these."""
