"""Who teaches: the papers' names, thin settings of ProxyDistill; and all presets by name."""
from ...errors import MMKDError, check_choice
from ...registry import MODELS
from ..spots import is_classifier
from .crosskd import CrossKD
from .deit import DeiT
from .ld import LD
from .proxy_distill import ProxyDistill
from .spot_adaptive import SAKD
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
        trainable: How much of the teacher learns: ``'all'``, the classification ``'head'`` (variant "F"), or
            an ``'adapter'`` under the frozen head (variant "G").
        **settings: Others of :class:`ProxyDistill`; ``proxy_task=1`` lets it learn from labels as well.
    """
    proxies = dict(
        all=dict(type='mmkd.WholeNetwork', source='teacher', init='teacher'),
        head=dict(type='mmkd.CopiedHead', source='teacher', init='teacher'),
        adapter=dict(type='mmkd.FrozenHeadLayers', layers='adapter'))
    check_choice(trainable, tuple(proxies), 'trainable')
    return ProxyDistill(**{
        **dict(
            proxy=proxies[trainable],
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
            proxy=dict(type='mmkd.WholeNetwork', source='student', config=config),
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
        placement: ``'student'``: the shadow head is a second head on the student's features. ``'teacher'``:
            it consists of layers under the teacher's frozen head. ``'alone'``: it is a network like the
            student.
        depth: With ``placement='student'``: see :class:`~mmkd.models.proxies.CopiedHead`.
        head: With ``placement='student'``: the settings of :class:`~mmkd.models.proxies.CopiedHead`.
        **settings: Others of :class:`ProxyDistill`.
    """
    check_choice(placement, ('student', 'teacher', 'alone'), 'placement')
    if (depth != 'head' or head) and placement != 'student':
        raise MMKDError("`depth` and `head` need placement='student'.")
    released = placement == 'teacher'
    proxies = dict(
        student=dict(type='mmkd.CopiedHead', source='student', depth=depth, settings=head),
        teacher=dict(type='mmkd.FrozenHeadLayers', layers='fusion'),
        alone=dict(type='mmkd.WholeNetwork', source='student'))
    return ProxyDistill(**{
        **dict(
            proxy=proxies[placement],
            temperature=temperature,
            proxy_task=1.0 if released else 0.0,
            teacher_to_proxy=1.0,
            student_to_proxy=weight,
            proxy_to_student=weight,
            standardize=released,
            teacher_loss='mse' if released else 'kl'),
        **settings})


class _Bridged(ProxyDistill):

    def __init__(self, tail: dict, **settings) -> None:
        super().__init__(**settings)
        self.tail_cfg = tail

    def build(self, student, teachers, student_cfg) -> None:
        if is_classifier(student):
            self.proxy_cfg = self.tail_cfg
        super().build(student, teachers, student_cfg)


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
        init: The initial weights of the bridge, ``'random'`` or ``'teacher'``.
        last_stage: Detectors: whether the bridge copies the last backbone stage and the neck as well
            (:class:`~mmkd.models.proxies.CopiedTail`, as always in classifiers), or only the classification
            head (:class:`~mmkd.models.proxies.CopiedHead`).
        **settings: Others of :class:`ProxyDistill`.
    """
    head = dict(type='mmkd.CopiedHead', source='teacher', init=init)
    tail = dict(type='mmkd.CopiedTail', init=init)
    return _Bridged(tail, **{
        **dict(
            proxy=tail if last_stage else head,
            temperature=temperature,
            proxy_task=1.0,
            teacher_to_proxy=weight,
            student_to_proxy=weight,
            proxy_to_student=weight),
        **settings})


PRESETS = {**{preset.__name__: preset for preset in (
    CrossKD, DML, DeiT, KD, KDTuned, LD, SAKD, SHAKE, SOKD)}, **ZOO_PRESETS}
"""Presets by name; ``tools/train.py --distill`` takes these."""
