"""Who teaches: the papers' names, thin settings of ProxyDistill; and all presets by name."""
from ...registry import MODELS
from .crosskd import CrossKD
from .deit import DeiT
from .ld import LD
from .proxy_distill import ProxyDistill
from .sakd import SAKD
from .zoo import ZOO_PRESETS


@MODELS.register_module()
def KD(temperature: float = 4.0, weight: float = 1.0, **settings) -> ProxyDistill:
    """Knowledge distillation (Hinton et al., 2015): the student imitates the teacher's logits.

    Args:
        temperature: τ.
        weight: λ of KL(T‖S).
        **settings: Others of :class:`ProxyDistill`, such as ``sample_weight``.
    """
    return ProxyDistill(temperature=temperature, proxy_to_student=weight, **settings)


@MODELS.register_module()
def KDTuned(temperature: float = 4.0,
            weight: float = 1.0,
            trainable: str = 'all',
            **settings) -> ProxyDistill:
    """KD with a teacher that goes on learning from the student (KD†, Li and Jin, NeurIPS 2022).

    Args:
        temperature: τ.
        weight: λ of KL(sg S‖P) and KL(sg P‖S).
        trainable: How much of the teacher learns, see :class:`~mmkd.models.proxies.TunedTeacher`.
        **settings: Others of :class:`ProxyDistill`; ``proxy_task=1`` lets it learn from labels as well.
    """
    return ProxyDistill(**{
        **dict(
            proxy=dict(type='mmkd.TunedTeacher', trainable=trainable),
            temperature=temperature,
            proxy_task=0.0,
            teacher_to_proxy=0.0,
            student_to_proxy=weight,
            proxy_to_student=weight),
        **settings})


@MODELS.register_module()
def DML(temperature: float = 4.0,
        weight: float = 1.0,
        reversed: bool = True,
        config: str | dict | None = None,
        **settings) -> ProxyDistill:
    """Deep mutual learning (Zhang et al., CVPR 2018): the student and a peer learn from each other.

    Args:
        temperature: τ.
        weight: λ of KL(sg S‖P) and KL(sg P‖S).
        reversed: Whether the peer learns from the student; without it, this is DML†.
        config: Config of the peer; the student's by default.
        **settings: Others of :class:`ProxyDistill`.
    """
    return ProxyDistill(**{
        **dict(
            proxy=dict(type='mmkd.PeerNetwork', config=config),
            temperature=temperature,
            proxy_task=1.0,
            teacher_to_proxy=0.0,
            student_to_proxy=weight if reversed else 0.0,
            proxy_to_student=weight),
        **settings})


@MODELS.register_module()
def SHAKE(temperature: float = 4.0,
          weight: float = 1.0,
          placement: str = 'student',
          depth: str = 'head',
          head: dict | None = None,
          **settings) -> ProxyDistill:
    """Shadow knowledge distillation (Li and Jin, NeurIPS 2022).

    ``placement='student'`` is the paper's text, ``'teacher'`` the released form: there the shadow head has
    its own task loss, imitates the teacher by MSE, and all logits are standardized.

    Args:
        temperature: τ.
        weight: λ of KL(sg S‖P) and KL(sg P‖S); what passes from T to P has weight 1.
        placement: Where the shadow head stands, see :class:`~mmkd.models.proxies.ShadowHead`.
        depth: How much of the head it has of its own, see there.
        head: In which settings it differs from the student's head, see there.
        **settings: Others of :class:`ProxyDistill`.
    """
    released = placement == 'teacher'
    return ProxyDistill(**{
        **dict(
            proxy=dict(type='mmkd.ShadowHead', placement=placement, depth=depth, head=head),
            temperature=temperature,
            proxy_task=1.0 if released else 0.0,
            teacher_to_proxy=1.0,
            student_to_proxy=weight,
            proxy_to_student=weight,
            standardize=released,
            teacher_loss='mse' if released else 'kl'),
        **settings})


@MODELS.register_module()
def SOKD(temperature: float = 4.0,
         weight: float = 1.0,
         init: str = 'random',
         last_stage: bool = False,
         **settings) -> ProxyDistill:
    """Semi-online knowledge distillation (Liu et al., BMVC 2021): a bridge on the frozen teacher teaches.

    Args:
        temperature: τ.
        weight: Of all KL terms; 1 in the paper.
        init: Weights that the bridge starts from, see :class:`~mmkd.models.proxies.KnowledgeBridge`.
        last_stage: How much of the teacher the bridge copies, see there.
        **settings: Others of :class:`ProxyDistill`.
    """
    return ProxyDistill(**{
        **dict(
            proxy=dict(type='mmkd.KnowledgeBridge', init=init, last_stage=last_stage),
            temperature=temperature,
            proxy_task=1.0,
            teacher_to_proxy=weight,
            student_to_proxy=weight,
            proxy_to_student=weight),
        **settings})


PRESETS = {**{preset.__name__: preset for preset in (
    CrossKD, DML, DeiT, KD, KDTuned, LD, SAKD, SHAKE, SOKD)}, **ZOO_PRESETS}
"""Presets by name; ``tools/train.py --distill`` takes these."""
