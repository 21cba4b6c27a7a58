"""The methods that distill logits through a proxy, named as in the papers: settings of ProxyDistill."""
import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import Fraction, NonNegativeFloat, Temperature
from ..spots import QueryMatching, SampleWeight
from ..teachers import Teacher
from .proxy_distill import ProxyDistill
from .teacher_weights import TeacherWeights


@MODELS.register_module()
class KD(ProxyDistill):
    r"""Knowledge distillation (Hinton et al., 2015): the student imitates the teacher's logits.

    .. math:: L = e \, task(S, Y) + w \, KL(T ‖ S)

    Args:
        temperature: The temperature τ.
        weight: The weight w of KL(T‖S).
        student_task: The weight e of the student's task loss; 0.1 beside ``weight=0.9`` in CRD's protocol.
        sample_weight: See :class:`ProxyDistill`.
        standardize: See :class:`ProxyDistill`.
        standardize_task: See :class:`ProxyDistill`.
        teacher_weights: See :class:`ProxyDistill`.
        tolerance: See :class:`ProxyDistill`.
        query_match: See :class:`ProxyDistill`.
    """

    def __init__(self, temperature: Temperature = 4.0, weight: NonNegativeFloat = 1.0,
                 student_task: NonNegativeFloat = 1.0, sample_weight: SampleWeight | None = None,
                 standardize: bool = False, standardize_task: bool = False,
                 teacher_weights: TeacherWeights = 'equal', tolerance: Fraction = 0.6,
                 query_match: QueryMatching = 'hungarian') -> None:
        super().__init__(
            None, temperature, proxy_to_student=weight,
            student_task=student_task, sample_weight=sample_weight, standardize=standardize,
            standardize_task=standardize_task, teacher_weights=teacher_weights, tolerance=tolerance,
            query_match=query_match)


@MODELS.register_module()
class LSKD(ProxyDistill):
    r"""KD of standardized logits (Sun et al., CVPR 2024): the student need not match the teacher's scale.

    .. math:: L = e \, task(S, Y) + w \, KL(Z(T) ‖ Z(S)), \quad Z(x) = (x - mean(x)) / std(x)

    with the unbiased standard deviation of the K classes of a sample. ``standardize`` of
    :class:`ProxyDistill` has the biased one and a factor π, so Z(x)/τ is its logits at
    :math:`τ π \sqrt{K / (K - 1)}`, and the weight is divided by the square of the same factor.

    Args:
        temperature: The temperature τ; 2 for most pairs of the paper, 3 or 4 for some.
        weight: The weight w; 9 for most pairs of the paper.
        student_task: The weight e of the student's task loss; 0.1 in the paper.
        sample_weight: See :class:`ProxyDistill`.
        teacher_weights: See :class:`ProxyDistill`.
        tolerance: See :class:`ProxyDistill`.
    """

    def __init__(self, temperature: Temperature = 2.0, weight: NonNegativeFloat = 9.0,
                 student_task: NonNegativeFloat = 1.0, sample_weight: SampleWeight | None = None,
                 teacher_weights: TeacherWeights = 'equal', tolerance: Fraction = 0.6) -> None:
        super().__init__(
            None, temperature, proxy_to_student=weight, student_task=student_task,
            sample_weight=sample_weight, standardize=True, teacher_weights=teacher_weights,
            tolerance=tolerance)

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        super().build(student, teachers, student_cfg)
        if self.layout.activation != 'softmax':
            raise MMKDError('LSKD compares distributions over classes (softmax), but the student '
                            f'{type(student).__name__} predicts every class independently. Use KD.')
        classes = self.layout.channels
        factor = math.pi * math.sqrt(classes / (classes - 1))
        self.temperature *= factor
        self.proxy_to_student /= factor**2


@MODELS.register_module()
class KDTuned(ProxyDistill):
    """KD with a teacher that keeps learning from the student (KD†; Li and Jin, NeurIPS 2022).

    The trained copy of the teacher is a :class:`~mmkd.models.proxies.WholeNetwork`, a
    :class:`~mmkd.models.proxies.CopiedHead`, or a :class:`~mmkd.models.proxies.FrozenHeadLayers`.

    Args:
        temperature: The temperature τ.
        weight: The weight w of KL(sg S‖P) and KL(sg P‖S).
        trainable: Which part of the teacher learns: ``'all'`` of it, its ``'head'``, or a residual
            ``'adapter'`` under its frozen head.
        proxy_task: The weight of the tuned teacher's task loss; with 1, it learns from labels as well.
        student_task: See :class:`ProxyDistill`.
        sample_weight: See :class:`ProxyDistill`.
        standardize: See :class:`ProxyDistill`.
        standardize_task: See :class:`ProxyDistill`.
        teacher_weights: See :class:`ProxyDistill`.
        tolerance: See :class:`ProxyDistill`.
        proxy_lr_mult: The learning rate of the trained part of the teacher, relative to the student's. At the
            student's own rate, the teacher forgets what it knows (measured in docs/benchmarks/proxies.md).
        query_match: See :class:`ProxyDistill`.
    """

    def __init__(self, temperature: Temperature = 4.0, weight: NonNegativeFloat = 1.0,
                 trainable: Literal['all', 'head', 'adapter'] = 'all', proxy_task: NonNegativeFloat = 0.0,
                 student_task: NonNegativeFloat = 1.0, sample_weight: SampleWeight | None = None,
                 standardize: bool = False, standardize_task: bool = False,
                 teacher_weights: TeacherWeights = 'equal', tolerance: Fraction = 0.6,
                 proxy_lr_mult: NonNegativeFloat = 0.001,
                 query_match: QueryMatching = 'hungarian') -> None:
        proxies = dict(
            all=dict(type='mmkd.WholeNetwork', source='teacher', init='teacher'),
            head=dict(type='mmkd.CopiedHead', source='teacher', init='teacher'),
            adapter=dict(type='mmkd.FrozenHeadLayers', layers='adapter'))
        super().__init__(
            proxies[trainable], temperature, proxy_task,
            teacher_to_proxy=0.0, student_to_proxy=weight, proxy_to_student=weight,
            student_task=student_task, sample_weight=sample_weight, standardize=standardize,
            standardize_task=standardize_task, teacher_weights=teacher_weights, tolerance=tolerance,
            proxy_lr_mult=proxy_lr_mult, query_match=query_match)


@MODELS.register_module()
class DML(ProxyDistill):
    """Deep mutual learning (Zhang et al., CVPR 2018): the student and a peer learn from each other.

    The peer is a :class:`~mmkd.models.proxies.WholeNetwork`. The paper updates the two networks in turn; here
    one step updates both.

    Args:
        temperature: The temperature τ.
        weight: The weight w of KL(sg S‖P) and KL(sg P‖S). The peer learns from labels alone at first, so a
            weight that suits KD is too large.
        reversed: Whether the peer learns from the student; the method is DML† without it.
        config: The config of the peer; by default the student's.
        student_task: See :class:`ProxyDistill`.
        sample_weight: See :class:`ProxyDistill`.
        standardize: See :class:`ProxyDistill`.
        standardize_task: See :class:`ProxyDistill`.
        teacher_weights: See :class:`ProxyDistill`.
        tolerance: See :class:`ProxyDistill`.
        proxy_lr_mult: See :class:`ProxyDistill`.
    """

    def __init__(self, temperature: Temperature = 4.0, weight: NonNegativeFloat = 1.0,
                 reversed: bool = True, config: str | dict | None = None,
                 student_task: NonNegativeFloat = 1.0, sample_weight: SampleWeight | None = None,
                 standardize: bool = False, standardize_task: bool = False,
                 teacher_weights: TeacherWeights = 'equal', tolerance: Fraction = 0.6,
                 proxy_lr_mult: NonNegativeFloat = 1.0) -> None:
        super().__init__(
            dict(type='mmkd.WholeNetwork', source='student', config=config), temperature, proxy_task=1.0,
            teacher_to_proxy=0.0, student_to_proxy=weight if reversed else 0.0, proxy_to_student=weight,
            student_task=student_task, sample_weight=sample_weight, standardize=standardize,
            standardize_task=standardize_task, teacher_weights=teacher_weights, tolerance=tolerance,
            proxy_lr_mult=proxy_lr_mult)


@MODELS.register_module()
class SHAKE(ProxyDistill):
    """Shadow knowledge distillation (Li and Jin, NeurIPS 2022).

    ``placement='student'`` is the method as the paper describes it, ``'teacher'`` the method as released: its
    shadow head has a task loss, imitates the teacher by the mean squared error, and the logits of classifiers
    are standardized.

    Args:
        temperature: The temperature τ.
        weight: The weight w of all KL terms. The student feels the teacher with the effective weight
            w / (1 + λ), see :class:`ProxyDistill`.
        reversed_weight: The weight λ of reversed distillation, KL(sg S‖P), relative to ``weight``; 1 in the
            paper.
        placement: Where the shadow head is. ``'student'``: a second head on the student's features, a
            :class:`~mmkd.models.proxies.CopiedHead`. ``'teacher'``: layers that fuse the features of the
            frozen teacher, under the teacher's frozen head, a :class:`~mmkd.models.proxies.FrozenHeadLayers`.
            ``'alone'``: a network like the student, a :class:`~mmkd.models.proxies.WholeNetwork`.
        depth: With ``placement='student'``: ``'head'`` builds a second copy of the whole classification
            head, ``'last_layer'`` only of its last layer.
        head: With ``placement='student'``: settings in which the shadow head differs from the student's head,
            such as ``dict(stacked_convs=6)``.
        proxy_task: The weight of the shadow head's task loss; by default 1 with ``placement='teacher'``,
            otherwise 0.
        teacher_to_proxy: The weight of what the shadow head learns from the teacher; by default ``weight``.
        student_task: See :class:`ProxyDistill`.
        sample_weight: See :class:`ProxyDistill`.
        standardize: See :class:`ProxyDistill`; by default ``None`` with ``placement='teacher'``, otherwise
            false.
        standardize_task: See :class:`ProxyDistill`.
        teacher_loss: See :class:`ProxyDistill`; by default ``'mse'`` with ``placement='teacher'``, otherwise
            ``'kl'``.
        teacher_weights: See :class:`ProxyDistill`.
        tolerance: See :class:`ProxyDistill`.
        proxy_lr_mult: See :class:`ProxyDistill`.
        query_match: See :class:`ProxyDistill`.
    """

    def __init__(self, temperature: Temperature = 4.0, weight: NonNegativeFloat = 1.0,
                 reversed_weight: NonNegativeFloat = 1.0,
                 placement: Literal['student', 'teacher', 'alone'] = 'student',
                 depth: Literal['head', 'last_layer'] = 'head', head: dict | None = None,
                 proxy_task: NonNegativeFloat | None = None,
                 teacher_to_proxy: NonNegativeFloat | None = None, student_task: NonNegativeFloat = 1.0,
                 sample_weight: SampleWeight | None = None, standardize: bool | None = None,
                 standardize_task: bool = False, teacher_loss: Literal['kl', 'mse'] | None = None,
                 teacher_weights: TeacherWeights = 'equal', tolerance: Fraction = 0.6,
                 proxy_lr_mult: NonNegativeFloat = 1.0,
                 query_match: QueryMatching = 'hungarian') -> None:
        proxies: dict[str, dict] = dict(
            student=dict(type='mmkd.CopiedHead', source='student', depth=depth, settings=head),
            teacher=dict(type='mmkd.FrozenHeadLayers', layers='fusion'),
            alone=dict(type='mmkd.WholeNetwork', source='student'))
        if placement != 'student' and (depth != 'head' or head):
            raise MMKDError("`depth` and `head` need placement='student'.")
        released = placement == 'teacher'
        if proxy_task is None:
            proxy_task = 1.0 if released else 0.0
        if teacher_to_proxy is None:
            teacher_to_proxy = weight
        if standardize is None and not released:
            standardize = False
        if teacher_loss is None:
            teacher_loss = 'mse' if released else 'kl'
        super().__init__(
            proxies[placement], temperature, proxy_task, teacher_to_proxy,
            student_to_proxy=reversed_weight * weight, proxy_to_student=weight, student_task=student_task,
            sample_weight=sample_weight, standardize=standardize, standardize_task=standardize_task,
            teacher_loss=teacher_loss, teacher_weights=teacher_weights, tolerance=tolerance,
            proxy_lr_mult=proxy_lr_mult, query_match=query_match)


@MODELS.register_module()
class SOKD(ProxyDistill):
    """Semi-online knowledge distillation (Liu et al., BMVC 2021): a bridge on the frozen teacher teaches.

    The bridge is trained: of classifiers a :class:`~mmkd.models.proxies.CopiedTail` (as published), of
    detectors a :class:`~mmkd.models.proxies.CopiedHead`.

    Args:
        temperature: The temperature τ.
        weight: The weight w of all KL terms; 1 in the paper. The student feels the teacher with the effective
            weight w / (1 + λ), see :class:`ProxyDistill`.
        reversed_weight: The weight λ of reversed distillation, KL(sg S‖P), relative to ``weight``; 1 in the
            paper.
        init: The initial weights of the bridge: ``'random'`` or the ``'teacher'``'s.
        last_stage: Detectors: whether the bridge copies the last stage of the backbone and the neck as well.
        student_task: See :class:`ProxyDistill`.
        sample_weight: See :class:`ProxyDistill`.
        standardize: See :class:`ProxyDistill`.
        standardize_task: See :class:`ProxyDistill`.
        teacher_weights: See :class:`ProxyDistill`.
        tolerance: See :class:`ProxyDistill`.
        proxy_lr_mult: See :class:`ProxyDistill`.
        query_match: See :class:`ProxyDistill`.
    """

    def __init__(self, temperature: Temperature = 4.0, weight: NonNegativeFloat = 1.0,
                 reversed_weight: NonNegativeFloat = 1.0,
                 init: Literal['random', 'teacher'] = 'random', last_stage: bool = False,
                 student_task: NonNegativeFloat = 1.0, sample_weight: SampleWeight | None = None,
                 standardize: bool = False, standardize_task: bool = False,
                 teacher_weights: TeacherWeights = 'equal', tolerance: Fraction = 0.6,
                 proxy_lr_mult: NonNegativeFloat = 1.0,
                 query_match: QueryMatching = 'hungarian') -> None:
        super().__init__(
            dict(type='mmkd.CopiedTail', init=init), temperature, proxy_task=1.0,
            teacher_to_proxy=weight, student_to_proxy=reversed_weight * weight, proxy_to_student=weight,
            student_task=student_task, sample_weight=sample_weight, standardize=standardize,
            standardize_task=standardize_task, teacher_weights=teacher_weights, tolerance=tolerance,
            proxy_lr_mult=proxy_lr_mult, query_match=query_match)
        self.init = init
        self.last_stage = last_stage

    def choose_proxy(self) -> dict | None:
        if self.layout.of_images or self.last_stage:
            return self.proxy_cfg
        return dict(type='mmkd.CopiedHead', source='teacher', init=self.init)
