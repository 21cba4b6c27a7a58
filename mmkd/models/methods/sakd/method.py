"""SAKD, which chooses for every sample at which spots to distill."""
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ....errors import MMKDError, nearest_names
from ....random_state import separate_random_state
from ....registry import MODELS, build_checked
from ....settings import NonNegativeFloat, PositiveFloat, Temperature, unknown_setting
from ...losses import kl_divergence
from ...spots import is_classifier, logit_layout, probe, resolve_spot
from ...spots.splitting import split
from ...step import Step
from ...teachers import Teacher
from ..base import COMMON_SETTINGS, Method
from ..family_defaults import with_family_defaults
from ..feature_distill import FeatureDistill
from ..logit_distill import LogitDistill
from ..mixins import EpochReports, OptimizerSettings, PhasedMethod, TrainLabelsMethod
from ..protocols import PROTOCOLS
from .policy import SpotPolicy
from .routing import POOLED, Routing, stage_numbers

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

    It is for classifiers. The policy, the adapters and the teacher are not needed after training.

    Args:
        method: The config of the inner method, which distills features or logits. ``None`` distills only
            logits, by the KL divergence.
        strategy: ``'adaptive'``, or one of the paper's controls: ``'always'``, ``'never'``, ``'random'``
            (half of the spots), ``'reversed'`` (the spots that the policy leaves out).
        kd_weight: The weight α.
        temperature: The temperature τ of the KL divergence.
        gamma: The factor γ.
        gumbel_temperature: The temperature of the policy's Gumbel-softmax.
        same_family: Whether both networks belong to one family, for which the policy starts by distilling at
            every spot. By default, whether their backbones have the same class and their pooled features the
            same number of channels: networks of equal width that differ in depth.
        lr_mult: The learning rate of policy and adapters, relative to the student's.
        weight_decay: The weight decay of policy and adapters.
    """

    counters = ('sample_counts', 'distilled_counts')
    proxy_losses = ('loss_routing', 'loss_balance')

    inner_key: str = 'method'
    """The key of the inner method's settings in the config of this method."""

    def __init__(self, method: Mapping | None = None, strategy: Strategy = 'adaptive',
                 kd_weight: NonNegativeFloat = 1.0, temperature: Temperature = 4.0,
                 gamma: PositiveFloat = 1.0, gumbel_temperature: Temperature = 5.0,
                 same_family: bool | None = None, lr_mult: NonNegativeFloat = 0.5,
                 weight_decay: NonNegativeFloat = 1e-3) -> None:
        super().__init__()
        self.inner: FeatureDistill | LogitDistill | None = None
        if method is not None:
            own = {key: value for key, value in with_family_defaults(method, 'classifier').items()
                   if key not in COMMON_SETTINGS}
            self.inner = build_checked(
                own, (FeatureDistill, LogitDistill), 'method that distills features or logits',
                self.inner_key, _inner_methods())
        self.strategy = strategy
        self.has_policy = strategy in ('adaptive', 'reversed')
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.gamma = gamma
        self.gumbel_temperature = gumbel_temperature
        self.same_family = same_family
        settings = dict(lr_mult=lr_mult, weight_decay=weight_decay)
        self.optimizer_settings = dict(policy=settings, routing=settings) if self.has_policy else {}
        if isinstance(self.inner, FeatureDistill):
            self.first_phase_epochs = self.inner.first_phase_epochs
            self.trains_student_first = self.inner.trains_student_first
            self.needs_train_labels = self.inner.needs_train_labels
        self.policy, self.routing = nn.Module(), nn.Module()

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        if not is_classifier(student):
            raise MMKDError('SAKD is for classifiers.')
        if len(teachers) != 1:
            raise MMKDError(f'SAKD learns from one teacher, not from {len(teachers)}.')
        teacher, = teachers
        if self.has_policy and teacher.inference.precision != 'fp32':
            raise MMKDError("SAKD's routing trains through the teacher; leave out teacher.precision.")
        self.layout = logit_layout(student, 'student')
        if self.layout.activation != 'softmax':
            raise MMKDError('SAKD is for classifiers that choose one class.')
        teacher.require_logits(self.layout)
        self._teacher = (teacher, )  # in a tuple, so that it is not a submodule
        student_spots, teacher_spots = ['cls_outputs', 'features'], ['cls_outputs', 'features']
        if self.inner is not None:
            self.inner.build(student, teachers, student_cfg)
            student_spots += self.inner.student_spots
            teacher_spots += self.inner.teacher_spots
        self.student_spots = tuple(dict.fromkeys(student_spots))
        self.teacher_spots = tuple(dict.fromkeys(teacher_spots))
        self._add_spots(student, teacher.model)
        num_classes = self.layout.num_classes
        self.register_buffer('sample_counts', torch.zeros(num_classes), False)
        self.register_buffer('distilled_counts', torch.zeros(num_classes, len(self.spot_names)), False)

    def _add_spots(self, student: nn.Module, teacher: nn.Module) -> None:
        """Find the stages of the inner method's spots, and build the policy and the routing."""
        stages, shapes = [], []
        if isinstance(self.inner, FeatureDistill):
            student_stages = stage_numbers(
                self.inner.student_spots, len(split(student.backbone).stages), 'student')
            teacher_stages = stage_numbers(
                self.inner.teacher_spots, len(split(teacher.backbone).stages), 'teacher')
            stages = list(zip(student_stages, teacher_stages, strict=True))
            shapes = list(zip(*self.inner.shapes, strict=True))
        names = ['features' if stage == POOLED else f'stage{stage}' for stage, _ in stages]
        self.spot_names = [*names, 'logits']
        if self.has_policy:
            channels = _pooled_channels(student), _pooled_channels(teacher)
            same_family = self.same_family
            if same_family is None:  # as in the released settings, in which ResNet32x4 and ResNet32 differ
                same_family = type(student.backbone) is type(teacher.backbone) and channels[0] == channels[1]
            bias = 10.0 if same_family else 0.0
            self.policy = SpotPolicy(sum(channels), len(self.spot_names), self.gumbel_temperature, bias)
            self.routing = Routing(stages, shapes)

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
        student_logits, = self.layout.logits(step.student_outputs['cls_outputs'])
        teacher_logits, = self.layout.logits(step.teacher_outputs[0]['cls_outputs'])
        target = _target(step.data_samples, student_logits)
        choices = self._choose(step, len(student_logits))
        losses = {}
        if self.has_policy:
            losses.update(self._routing_losses(step, choices, student_logits, teacher_logits, target))
        used = 1 - choices.detach() if self.strategy == 'reversed' else choices.detach()
        if self.inner is not None and self.inner.active:
            inner_choices = used[:, :-1] if isinstance(self.inner, FeatureDistill) else used[:, -1:]
            losses.update(self.inner(step, inner_choices.unbind(dim=1)))
        divergence = kl_divergence(student_logits, teacher_logits.detach(), self.temperature)
        losses['loss_kd'] = self.kd_weight * (used[:, -1] * divergence).mean()
        self._count(used, target)
        shares = used.mean(dim=0)
        losses.update({f'share_{name}': share for name, share in zip(self.spot_names, shares, strict=True)})
        return self._with_all_parameters(losses)

    def _choose(self, step: Step, number: int) -> Tensor:
        """Return the choices of a batch of ``number`` samples, ``(N, spots + 1)``."""
        shape = number, len(self.spot_names)
        if self.strategy in ('always', 'never'):
            return torch.full(shape, float(self.strategy == 'always'), device=step.inputs.device)
        with separate_random_state():
            if self.strategy == 'random':
                return (torch.rand(shape, device=step.inputs.device) < 0.5).float()
            return self.policy(_pooled(step.student_outputs['features']),
                               _pooled(step.teacher_outputs[0]['features']))

    def _routing_losses(self, step: Step, choices: Tensor, student_logits: Tensor, teacher_logits: Tensor,
                        target: Tensor) -> dict:
        teacher, = self._teacher
        teacher_feature = None
        if isinstance(self.inner, FeatureDistill):
            teacher_feature = self.inner.levels(step.teacher_outputs[0], self.inner.teacher_spots)[0]
        routed_logits = self.routing(
            step.student, teacher, step.inputs, teacher_feature, teacher_logits, choices)
        routed = F.cross_entropy(routed_logits.float(), target)
        plain = F.cross_entropy(student_logits.float(), target)
        factor = self.gamma**(routed - plain).detach().sign()
        return dict(loss_routing=factor * routed,
                    loss_balance=(len(choices) / 2 - choices[:, -1].sum()).clamp(min=0))

    def _with_all_parameters(self, losses: dict) -> dict:
        """Make every parameter part of the losses, because DDP waits for those that no sample needed."""
        name = next(name for name in losses if 'loss' in name)
        zeros = [parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad]
        return {**losses, name: losses[name] + sum(zeros)}

    @torch.no_grad()
    def _count(self, used: Tensor, target: Tensor) -> None:
        classes = target if target.dim() == 1 else target.argmax(dim=1)
        self.distilled_counts.index_add_(0, classes, used.to(self.distilled_counts))
        self.sample_counts.index_add_(0, classes, torch.ones_like(classes, dtype=self.sample_counts.dtype))

    def epoch_report(self) -> dict:
        """Return the numbers of samples since the last report, and of those distilled, by class and spot.

        Returns:
            dict: ``spots``, their names; ``seen``, the number of samples of each of K classes; and
            ``chosen``, for each class the number of samples distilled at every spot. The numbers are sums
            over all ranks.
        """
        counts = [self.sample_counts.clone(), self.distilled_counts.clone()]
        for count in counts:
            all_reduce(count)
        self.sample_counts.zero_()
        self.distilled_counts.zero_()
        return dict(spots=self.spot_names, seen=counts[0].tolist(), chosen=counts[1].tolist())


@MODELS.register_module()
class SAKD(SpotAdaptiveDistill):
    """SAKD in the setting of its paper (Song et al., IEEE TIP 2022), on top of a method of the zoo.

    FSP, which has no first phase here, has weight 50.

    Args:
        method: The name of the inner method.
        strategy: See :class:`SpotAdaptiveDistill`.
        kd_weight: See :class:`SpotAdaptiveDistill`.
        temperature: See :class:`SpotAdaptiveDistill`.
        gamma: See :class:`SpotAdaptiveDistill`; by default 2 for AT, VID and RKD, and 1 otherwise, as in the
            released settings for CIFAR-100; those for Tiny-ImageNet have 2 for every method.
        gumbel_temperature: See :class:`SpotAdaptiveDistill`.
        same_family: See :class:`SpotAdaptiveDistill`.
        lr_mult: See :class:`SpotAdaptiveDistill`.
        weight_decay: See :class:`SpotAdaptiveDistill`.
        **method_settings: Settings of the inner method, such as ``weight`` or ``spot``; the default weight is
            from the protocol ``'sakd'``.
    """

    inner_key = ''

    def __init__(self, method: str = 'FitNet', strategy: Strategy = 'adaptive',
                 kd_weight: NonNegativeFloat = 1.0, temperature: Temperature = 4.0,
                 gamma: PositiveFloat | None = None, gumbel_temperature: Temperature = 5.0,
                 same_family: bool | None = None, lr_mult: NonNegativeFloat = 0.5,
                 weight_decay: NonNegativeFloat = 1e-3, **method_settings: Any) -> None:
        inner_methods = _inner_methods()
        if method not in inner_methods:
            raise MMKDError('SAKD needs an inner method that distills features or logits, not '
                            f'{method!r}{nearest_names(method, inner_methods)}.')
        inner_settings = inspect.signature(inner_methods[method]).parameters
        for key in method_settings:
            if key not in inner_settings:
                known = [*inspect.signature(SAKD).parameters, *inner_settings]
                raise unknown_setting('SAKD', key, known)
        defaults: dict[str, Any] = dict(type=f'mmkd.{method}')
        if method in PROTOCOLS['sakd']:
            defaults.update(protocol='sakd')
        if method == 'FSP':  # a first phase would have no choices
            defaults.update(weight=50.0, first_phase_epochs=0)
        if gamma is None:
            gamma = 2.0 if method in ('AT', 'VID', 'RKD') else 1.0
        super().__init__({**defaults, **method_settings}, strategy, kd_weight, temperature, gamma,
                         gumbel_temperature, same_family, lr_mult, weight_decay)


def _inner_methods() -> dict[str, type]:
    """Return the methods that SAKD can be on top of, by name."""
    return {cls.__name__: cls for base in (FeatureDistill, LogitDistill) for cls in base.__subclasses__()}


def _pooled(calls: list) -> Tensor:
    """Return the last recorded feature, averaged over positions, ``(N, C)``."""
    feature = calls[-1]
    while isinstance(feature, (tuple, list)):
        feature = feature[-1]
    return feature.flatten(2).mean(dim=2) if feature.dim() == 4 else feature


def _pooled_channels(model: nn.Module) -> int:
    outputs = probe(model, dict(features=resolve_spot(model, 'features', 'network')))
    return _pooled(outputs['features']).shape[1]


def _target(samples: Sequence, logits: Tensor) -> Tensor:
    """Return labels ``(N,)``, or probabilities ``(N, K)`` of mixed images."""
    if 'gt_score' in samples[0]:
        return torch.stack([sample.gt_score for sample in samples]).to(logits.device).float()
    return torch.cat([sample.gt_label for sample in samples]).to(logits.device)
