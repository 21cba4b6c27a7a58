"""SAKD, which chooses for every sample at which spots to distill."""
import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from ....errors import MMKDError, nearest_names
from ....random_state import separate_random_state
from ....registry import MODELS, build_checked
from ....settings import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Temperature, unknown_setting
from ...spots import is_classifier, is_two_stage, logit_layout, split
from ...step import Step
from ...teachers import Teacher
from ..base import COMMON_SETTINGS, Method
from ..family_defaults import kind_of, with_family_defaults
from ..feature_distill import FeatureDistill
from ..logit_distill import LogitDistill
from ..mixins import EpochReports, OptimizerSettings, PhasedMethod, TrainLabelsMethod
from ..protocols import PROTOCOLS
from ..proxy_distill import ProxyDistill
from .detector_routing import DetectorRouting, detector_spots, same_boxes
from .policy import build_policy, pooled
from .routing import POOLED, Routing, stage_numbers
from .targets import image_classes, image_targets

Strategy = Literal['adaptive', 'always', 'never', 'random', 'reversed']


@MODELS.register_module()
class SpotAdaptiveDistill(PhasedMethod, TrainLabelsMethod, OptimizerSettings, EpochReports, Method):
    r"""Distills every sample only at the spots that suit it (SAKD, Song et al., IEEE TIP 2022).

    .. math::
        L &= CE(S, Y) + \frac{1}{N} \sum_n \Big( \sum_i a_{in} L_{in} + \alpha a_{Kn} KL(T_n ‖ S_n) \Big) \\
        L_{routing} &= \frac{w}{N} \sum_n CE(z_n, Y_n) + \max(0, N/2 - \sum_n a_{Kn})

    L_i is the loss of an inner method at spot i, with that method's weight, and a are the choices of a
    :class:`~mmkd.models.methods.sakd.policy.SpotPolicy`, which learns from the routing loss. There, z are the
    logits of a :class:`~mmkd.models.methods.sakd.routing.Routing`, which sends every sample through stages of
    the student and the teacher by the same choices, and w is γ if z has a larger mean cross-entropy in the
    batch than the student, and 1/γ if it has a smaller one. The routing loss trains only the policy and the
    adapters of the routing. For losses that compare samples with one another, L_i is the loss of the chosen
    samples, multiplied by their share of the batch.

    In a detector, the samples are images, the spots are the levels of the neck, the stages of the backbone,
    the class logits where they can be compared, and the boxes of a dense head where the inner method distills
    them. The detection loss of a
    :class:`~mmkd.models.methods.sakd.detector_routing.DetectorRouting` replaces CE(z, Y). If the logits are
    not a spot, the mean over all spots replaces a_K.

    The policy, the adapters and the teacher are not needed after training.

    Args:
        method: The config of the inner method, which distills features or logits. ``None`` distills only
            logits, by the KL divergence.
        strategy: ``'adaptive'``, or one of the paper's controls: ``'always'``, ``'never'``, ``'random'``
            (half of the spots), ``'reversed'`` (the spots that the policy leaves out).
        kd_weight: The weight α. By default 1, but 0 if the inner method distills the outputs itself (KD,
            SHAKE, CrossKD, LD), or the logits of two detectors cannot be compared.
        temperature: The temperature τ of the KL divergence.
        gamma: The factor γ.
        gumbel_temperature: The temperature of the policy's Gumbel-softmax.
        same_family: Whether both networks belong to one family, for which the policy starts by distilling at
            every spot. By default, whether their backbones have the same class and their pooled features the
            same number of channels: networks of equal width that differ in depth.
        lr_mult: The learning rate of policy and adapters, relative to the student's.
        weight_decay: The weight decay of policy and adapters.
        routing_interval: The policy is trained in every ``routing_interval``-th iteration; 1 in the paper.
            In the other iterations, its choices count and its gradient is 0.
        skip_unchosen: Whether the routed pass begins at the first spot that a sample of the batch has chosen.
            It is shorter then, but spots before it do not learn from this batch.
        settle_below: The policy has settled if no share of the samples differs from the share in the epoch
            before by more than this; then it stays as it is, without any routed pass. ``None``: never.
    """

    counters = ('sample_counts', 'distilled_counts')
    proxy_losses = ('loss_routing', 'loss_balance')

    inner_key: str = 'method'
    """The key of the inner method's settings in the config of this method."""

    def __init__(self, method: Mapping | None = None, strategy: Strategy = 'adaptive',
                 kd_weight: NonNegativeFloat | None = None, temperature: Temperature = 4.0,
                 gamma: PositiveFloat = 1.0, gumbel_temperature: Temperature = 5.0,
                 same_family: bool | None = None, lr_mult: NonNegativeFloat = 0.5,
                 weight_decay: NonNegativeFloat = 1e-3, routing_interval: PositiveInt = 1,
                 skip_unchosen: bool = False, settle_below: Fraction | None = None) -> None:
        super().__init__()
        self.method_cfg = method
        self.inner: Method | None = None
        self.kd: ProxyDistill | None = None
        self.strategy = strategy
        self.has_policy = strategy in ('adaptive', 'reversed')
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.gamma = gamma
        self.gumbel_temperature = gumbel_temperature
        self.same_family = same_family
        self.routing_interval = routing_interval
        self.skip_unchosen = skip_unchosen
        self.settle_below = settle_below
        settings = dict(lr_mult=lr_mult, weight_decay=weight_decay)
        self.optimizer_settings = dict(policy=settings, routing=settings) if self.has_policy else {}
        self.policy, self.routing = nn.Module(), nn.Module()

    def choose_method(self, kind: str) -> Mapping | None:
        """Return the config of the inner method for a kind of student, see :func:`kind_of`."""
        return self.method_cfg

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        if len(teachers) != 1:
            raise MMKDError(f'SAKD learns from one teacher, not from {len(teachers)}.')
        teacher, = teachers
        self.layout = logit_layout(student, 'student')
        self._build_inner(student, teacher, student_cfg)
        outputs = self._build_outputs(student, teacher, student_cfg)
        if self.layout.of_images:
            self._build_for_classifier(student, teacher)
        else:
            self._build_for_detector(student, teacher, outputs)
        if self.has_policy:
            self.policy = build_policy(student, teacher.model, len(self.spot_names), self.gumbel_temperature,
                                       self.same_family)
        methods = [method for method in (self.inner, self.kd) if method is not None]
        features = ['features'] if self.has_policy else []
        rows = ['rois' if is_two_stage(student) else 'cls_outputs'] if outputs else []
        self.student_spots = tuple(dict.fromkeys(chain(
            self.student_spots, features, rows, *(method.student_spots for method in methods))))
        self.teacher_spots = tuple(dict.fromkeys(chain(
            self.teacher_spots, features, *(method.teacher_spots for method in methods))))
        num_classes = self.layout.num_classes
        self.register_buffer('settled', torch.tensor(False))
        self.register_buffer('last_shares', torch.full((len(self.spot_names), ), -1.0))
        self.register_buffer('sample_counts', torch.zeros(num_classes + 1), False)
        self.register_buffer('distilled_counts', torch.zeros(num_classes + 1, len(self.spot_names)), False)

    def _build_inner(self, student: nn.Module, teacher: Teacher, student_cfg: dict) -> None:
        cfg = self.choose_method(kind_of(student))
        if cfg is None:
            return
        complete = with_family_defaults(cfg, kind_of(student))
        settings = {key: value for key, value in complete.items() if key not in COMMON_SETTINGS}
        inner = build_checked(settings, Method, 'method that distills features or logits', self.inner_key,
                              inner_methods())
        name = type(inner).__name__
        if not inner.takes_choices:
            raise MMKDError(f'SAKD needs an inner method that distills features or logits, not {name!r}.')
        if not is_classifier(student):
            if inner.per_image_obstacle:
                raise MMKDError(f'SAKD chooses by image where to distill, but {name} has no loss of a single '
                                f'image: {inner.per_image_obstacle}.')
            if complete.get('balance') == 'gradient' and not self.is_balanced:
                raise MMKDError(f'{name} has no published weight for detectors: give SAKD its `weight`, or '
                                "choose another `method`, such as 'PKD'.")
        inner.build(student, [teacher], student_cfg)
        self.inner = inner
        for key in ('proxy_losses', 'imitation_losses', 'task_losses'):
            setattr(self, key, (*getattr(self, key), *getattr(inner, key)))
        self.student_task = inner.student_task
        if self.warmup is None:
            self.warmup = inner.warmup
        if isinstance(inner, OptimizerSettings):
            self.optimizer_settings = {**self.optimizer_settings, **{
                f'inner.{part}': settings for part, settings in inner.optimizer_settings.items()}}
        if isinstance(inner, FeatureDistill):
            for key in ('first_phase_epochs', 'trains_student_first', 'needs_train_labels'):
                setattr(self, key, getattr(inner, key))

    def _build_outputs(self, student: nn.Module, teacher: Teacher, student_cfg: dict) -> tuple[str, ...]:
        """Build the distillation of logits beside the inner method, and return the spots at the outputs."""
        of_inner = self.inner.output_spots if self.inner else ()
        if of_inner and not isinstance(self.inner, LogitDistill):
            if self.kd_weight:
                name = type(self.inner).__name__
                raise MMKDError(f'{name} distills the outputs itself; leave out `kd_weight`.')
            return of_inner
        weight = 1.0 if self.kd_weight is None else self.kd_weight
        if weight == 0 and not self.layout.of_images:
            return of_inner
        kd = ProxyDistill(temperature=self.temperature, proxy_to_student=weight)
        try:
            kd.build(student, [teacher], student_cfg)
        except MMKDError as error:
            if self.layout.of_images or self.kd_weight or self.inner is None:
                raise
            print_log(f'SAKD does not distill class logits here. {error}', 'current')
            return of_inner
        self.kd = kd
        return ('logits', )

    def _build_for_classifier(self, student: nn.Module, teacher: Teacher) -> None:
        """Find the stages of the inner method's spots, and build the policy and the routing."""
        if self.layout.activation != 'softmax':
            raise MMKDError('SAKD is for classifiers that choose one class.')
        if self.has_policy and teacher.inference.precision != 'fp32':
            raise MMKDError("SAKD's routing trains through the teacher; leave out teacher.precision.")
        teacher.require_logits(self.layout)
        stages, shapes = [], []
        if isinstance(self.inner, FeatureDistill):
            student_stages = stage_numbers(
                self.inner.student_spots, len(split(student.backbone).stages), 'student')
            teacher_stages = stage_numbers(
                self.inner.teacher_spots, len(split(teacher.model.backbone).stages), 'teacher')
            stages = list(zip(student_stages, teacher_stages, strict=True))
            shapes = list(zip(*self.inner.shapes, strict=True))
        self.feature_names = ['features' if stage == POOLED else f'stage{stage}' for stage, _ in stages]
        self.spot_names = [*self.feature_names, 'logits']
        self.student_spots = self.teacher_spots = ('cls_outputs', )
        self._teacher = (teacher, )  # in a tuple, so that it is not a submodule
        if self.has_policy:
            self.routing = Routing(stages, shapes)

    def _build_for_detector(self, student: nn.Module, teacher: Teacher, outputs: tuple[str, ...]) -> None:
        if not self.layout.dense and not is_two_stage(student):
            raise MMKDError('SAKD is for classifiers, dense detectors and two-stage detectors.')
        shapes = []
        self.feature_names = []
        if isinstance(self.inner, FeatureDistill):
            shapes = list(zip(*self.inner.shapes, strict=True))
            self.feature_names = detector_spots(student, self.inner.student_spots, len(shapes))
        self.spot_names = [*self.feature_names, *outputs]
        if 'boxes' in outputs and not same_boxes(student, teacher.model, self.layout):
            raise MMKDError('SAKD mixes the boxes of both networks, which needs dense heads of one type that '
                            'encode boxes alike.')
        if self.has_policy:
            self.routing = DetectorRouting(student, self.layout, self.feature_names, shapes, outputs,
                                           self.skip_unchosen)
            self.student_spots = self.routing.student_spots
            self.teacher_spots = self.routing.teacher_spots

    def set_train_labels(self, labels: Sequence[int]) -> None:
        if isinstance(self.inner, FeatureDistill):
            self.inner.set_train_labels(labels)

    def end_first_phase(self) -> None:
        if isinstance(self.inner, FeatureDistill):
            self.inner.end_first_phase()

    def forward(self, step: Step) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Returns:
            dict: ``loss_feature`` or ``loss_logit`` of the inner method, ``loss_kd``, with a policy also
            ``loss_routing`` and ``loss_balance``; and ``share_<spot>``, the share of the samples that are
            distilled at a spot.
        """
        if isinstance(self.inner, FeatureDistill):
            self.inner.in_first_phase = self.in_first_phase
            if self.in_first_phase:
                return self._with_all_parameters(self.inner(step))
        choices = self._choose(step)
        losses = {}
        if self._trains_policy():
            losses.update(self._routing_losses(step, choices))
        used = 1 - choices.detach() if self.strategy == 'reversed' else choices.detach()
        by_spot = dict(zip(self.spot_names, used.unbind(dim=1), strict=True))
        if self.inner is not None and self.inner.active:
            spots = self.inner.output_spots or self.feature_names
            losses.update(self.inner(step, [by_spot[spot] for spot in spots]))
        if self.kd is not None:
            losses['loss_kd'] = self.kd(step, [by_spot['logits']])['loss_student']
        self._count(step, used)
        losses.update({f'share_{name}': choice.mean() for name, choice in by_spot.items()})
        return self._with_all_parameters(losses)

    def _trains_policy(self) -> bool:
        iteration = MessageHub.get_current_instance().get_info('iter', 0) or 0
        settled = self.settle_below is not None and bool(self.settled)
        return self.has_policy and not settled and iteration % self.routing_interval == 0

    def _choose(self, step: Step) -> Tensor:
        """Return the choices of a batch, ``(N, spots)``."""
        shape = len(step.inputs), len(self.spot_names)
        if self.strategy in ('always', 'never'):
            return torch.full(shape, float(self.strategy == 'always'), device=step.inputs.device)
        with separate_random_state():
            if self.strategy == 'random':
                return (torch.rand(shape, device=step.inputs.device) < 0.5).float()
            return self.policy(pooled(step.student_outputs['features'], not self.layout.of_images),
                               pooled(step.teacher_outputs[0]['features'], not self.layout.of_images))

    def _routing_losses(self, step: Step, choices: Tensor) -> dict:
        if self.layout.of_images:
            routed, plain = self._classifier_losses(step, choices)
        else:
            routed, plain = self._detector_losses(step, choices)
        factor = self.gamma**(routed - plain).detach().sign()
        # Without a spot at the logits, which is the last one in the paper, all spots count.
        chosen = choices.mean(dim=1)
        if 'logits' in self.spot_names:
            chosen = choices[:, self.spot_names.index('logits')]
        return dict(loss_routing=factor * routed,
                    loss_balance=(len(choices) / 2 - chosen.sum()).clamp(min=0))

    def _classifier_losses(self, step: Step, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies of the routed logits and of the student's logits."""
        teacher, = self._teacher
        student_logits, = self.layout.logits(step.student_outputs['cls_outputs'])
        teacher_logits, = self.layout.logits(step.teacher_outputs[0]['cls_outputs'])
        target = image_targets(step.data_samples, student_logits)
        teacher_features: list[Tensor] = []
        if isinstance(self.inner, FeatureDistill):
            teacher_features = self.inner.levels(step.teacher_outputs[0], self.inner.teacher_spots)
        routed_logits = self.routing(
            step.student, teacher, step.inputs, teacher_features, teacher_logits, choices, self.skip_unchosen)
        return (F.cross_entropy(routed_logits.float(), target),
                F.cross_entropy(student_logits.float(), target))

    def _detector_losses(self, step: Step, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the detection losses of the routed features and of the student's features."""
        student, teacher = {}, {}
        if isinstance(self.inner, FeatureDistill):
            student, teacher = (dict(zip(self.feature_names, self.inner.levels(outputs, spots), strict=True))
                                for outputs, spots in ((step.student_outputs, self.inner.student_spots),
                                                       (step.teacher_outputs[0], self.inner.teacher_spots)))

        def routed(choices: Tensor) -> Tensor:
            by_spot = dict(zip(self.spot_names, choices.unbind(dim=1), strict=True))
            return self.routing(step, student, teacher, by_spot).mean()

        loss = routed(choices)
        if self.gamma == 1:  # then the comparison does not matter
            return loss, loss
        with torch.no_grad():
            return loss, routed(torch.zeros_like(choices))

    def _with_all_parameters(self, losses: dict) -> dict:
        """Make every parameter part of the losses, because DDP waits for those that no sample needed."""
        name = next(name for name in losses if 'loss' in name)
        zeros = [parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad]
        return {**losses, name: losses[name] + sum(zeros)}

    @torch.no_grad()
    def _count(self, step: Step, used: Tensor) -> None:
        classes = image_classes(step, self.layout)
        self.distilled_counts += (classes.T @ used).to(self.distilled_counts)
        self.sample_counts += classes.sum(dim=0).to(self.sample_counts)

    def freeze_settled(self) -> bool:
        if self.settle_below is None or not self.settled or not next(self.policy.parameters()).requires_grad:
            return False
        self.policy.requires_grad_(False)
        self.routing.requires_grad_(False)
        shares = ', '.join(f'{100 * share:.1f} %' for share in self.last_shares.tolist())
        print_log(f'The policy of SAKD has settled at {shares} for {", ".join(self.spot_names)}; it is '
                  'no longer trained.', 'current')
        return True

    def epoch_report(self) -> dict:
        """Return the numbers of samples since the last report, and of those distilled, by class and spot.

        Returns:
            dict: ``spots``, their names; ``shares``, for every spot the share of the samples distilled there;
            ``seen``, for each of K classes the number of samples with an object of it; and ``chosen``, for
            each class the number of these samples distilled at every spot. Numbers are sums over all ranks.
        """
        counts = [self.sample_counts.clone(), self.distilled_counts.clone()]
        for count in counts:
            all_reduce(count)
        self.sample_counts.zero_()
        self.distilled_counts.zero_()
        shares = counts[1][-1] / counts[0][-1].clamp(min=1)
        if self.has_policy and self.settle_below is not None:
            change = (shares - self.last_shares).abs().max()
            self.settled |= change <= self.settle_below
            self.last_shares.copy_(shares)
        return dict(spots=self.spot_names, shares=shares.tolist(), seen=counts[0][:-1].tolist(),
                    chosen=counts[1][:-1].tolist())


@MODELS.register_module()
class SAKD(SpotAdaptiveDistill):
    """SAKD in the setting of its paper (Song et al., IEEE TIP 2022), on top of a method of the zoo.

    FSP, which has no first phase here, has weight 50. Detectors are not in the paper.

    Args:
        method: The name of the inner method; by default FitNet for classifiers and PKD for detectors.
        strategy: See :class:`SpotAdaptiveDistill`.
        kd_weight: See :class:`SpotAdaptiveDistill`.
        temperature: See :class:`SpotAdaptiveDistill`. For methods that distill the outputs, such as KD, this
            and ``kd_weight`` are settings of the method.
        gamma: See :class:`SpotAdaptiveDistill`; by default 2 for AT, VID and RKD, and 1 otherwise, as in the
            released settings for CIFAR-100; those for Tiny-ImageNet have 2 for every method.
        gumbel_temperature: See :class:`SpotAdaptiveDistill`.
        same_family: See :class:`SpotAdaptiveDistill`.
        lr_mult: See :class:`SpotAdaptiveDistill`.
        weight_decay: See :class:`SpotAdaptiveDistill`.
        routing_interval: See :class:`SpotAdaptiveDistill`.
        skip_unchosen: See :class:`SpotAdaptiveDistill`.
        settle_below: See :class:`SpotAdaptiveDistill`.
        **method_settings: Settings of the inner method, such as ``weight`` or ``spot``; the default weight is
            from the protocol ``'sakd'`` for classifiers, and the method's own for detectors.
    """

    inner_key = ''

    def __init__(self, method: str | None = None, strategy: Strategy = 'adaptive',
                 kd_weight: NonNegativeFloat | None = None, temperature: Temperature | None = None,
                 gamma: PositiveFloat | None = None, gumbel_temperature: Temperature = 5.0,
                 same_family: bool | None = None, lr_mult: NonNegativeFloat = 0.5,
                 weight_decay: NonNegativeFloat = 1e-3, routing_interval: PositiveInt = 1,
                 skip_unchosen: bool = False, settle_below: Fraction | None = None,
                 **method_settings: Any) -> None:
        known = inner_methods()
        if method is not None and method not in known:
            raise MMKDError('SAKD needs an inner method that distills features or logits, not '
                            f'{method!r}{nearest_names(method, known)}.')
        inner = inspect.signature(known[method]).parameters if method else {}
        for key in method_settings:
            if method is None:
                raise MMKDError(f'SAKD has no setting {key!r}; name the `method` that it is a setting of.')
            if key not in inner:
                raise unknown_setting('SAKD', key, [*inspect.signature(SAKD).parameters, *inner])
        if method and not issubclass(known[method], (FeatureDistill, LogitDistill)):
            # It distills the outputs itself, so that these settings are its own.
            shared = dict(temperature=temperature, kd_weight=kd_weight)
            method_settings.update({key: value for key, value in shared.items()
                                    if key in inner and value is not None})
            kd_weight = None if 'kd_weight' in inner else kd_weight
        if gamma is None:
            gamma = 2.0 if method in ('AT', 'VID', 'RKD') else 1.0
        super().__init__(None, strategy, kd_weight, 4.0 if temperature is None else temperature, gamma,
                         gumbel_temperature, same_family, lr_mult, weight_decay, routing_interval,
                         skip_unchosen, settle_below)
        self.method = method
        self.method_settings = method_settings

    def choose_method(self, kind: str) -> Mapping:
        method = self.method or ('FitNet' if kind == 'classifier' else 'PKD')
        defaults: dict[str, Any] = dict(type=f'mmkd.{method}')
        if method in PROTOCOLS['sakd'] and kind == 'classifier':
            defaults.update(protocol='sakd')
        if method == 'FSP':  # a first phase would have no choices
            defaults.update(weight=50.0, first_phase_epochs=0)
        return {**defaults, **self.method_settings}


def inner_methods() -> dict[str, type]:
    """Return the methods that SAKD can be on top of, by name."""
    return {cls.__name__: cls for cls in MODELS.module_dict.values()
            if isinstance(cls, type) and issubclass(cls, Method) and cls.takes_choices
            and cls not in (FeatureDistill, LogitDistill, ProxyDistill)}
