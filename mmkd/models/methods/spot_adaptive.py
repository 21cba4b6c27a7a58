"""Where to distil: SAKD chooses spots per sample."""
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from ...errors import MMKDError, check_weight, nearest_names
from ...random_state import separate_random_state
from ...registry import MODELS
from ..losses import kl_divergence
from ..spots import is_classifier, logit_layout, probe, resolve_spot
from ..spots.policy import SpotPolicy
from ..spots.routing import POOLED, Routing, positions_of
from ..spots.splitting import split
from ..step import Step
from .base import Method
from .feature_distill import FeatureDistill
from .logit_distill import LogitDistill
from .zoo import ZOO_PRESETS

STRATEGIES = ('adaptive', 'always', 'never', 'random', 'reversed')


@MODELS.register_module()
class SpotAdaptiveDistill(Method):
    r"""Distils every sample only at the spots that suit it (Song et al., SAKD, IEEE TIP 2022).

    .. math::
        L &= CE(S, Y) + \frac{1}{N} \sum_n \Big( \sum_i a_{in} L_{in} + \alpha a_{Kn} KL(T_n ‖ S_n) \Big) \\
        L_{routing} &= \frac{1}{N} \sum_n w_n CE(z_n, Y_n) + \max(0, N/2 - \sum_n a_{Kn})

    L_i is the loss of another method at spot i, by its own weight, and a are choices of a
    :class:`~mmkd.models.spots.policy.SpotPolicy`. It learns from the routing loss: z are the logits of a
    :class:`~mmkd.models.spots.routing.Routing`, which sends every sample through stages of the student and
    the teacher by the same choices, and w is γ where z does worse than the student, and 1/γ where it does
    better. The routing loss trains policy and adapters only. For losses that compare samples with one
    another, L_i is the loss of the chosen ones times their share.

    For classifiers. Neither policy, nor adapters, nor the teacher are needed after training.

    Args:
        method: Config of the method whose spots are chosen: one of features, or of logits. ``None``: the
            logits alone, by KL.
        strategy: ``'adaptive'``; or the paper's controls: ``'always'``, ``'never'``, ``'random'`` (half of
            the spots), ``'reversed'`` (the spots that the policy would leave out).
        kd_weight: α.
        temperature: τ of the KL.
        gamma: γ; 2 in the released settings of AT, VID and RKD.
        gumbel_temperature: Of the policy.
        same_family: Whether both networks are of one family, so that the policy starts with distilling
            everywhere; by default, whether their backbones are of the same class.
        lr_mult: Learning rate of policy and adapters, relative to the student's.
        weight_decay: Of policy and adapters.
    """

    def __init__(self,
                 method: Mapping | None = None,
                 strategy: str = 'adaptive',
                 kd_weight: float = 1.0,
                 temperature: float = 4.0,
                 gamma: float = 1.0,
                 gumbel_temperature: float = 5.0,
                 same_family: bool | None = None,
                 lr_mult: float = 0.5,
                 weight_decay: float = 1e-3) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise MMKDError(f'`strategy` must be one of {STRATEGIES}, not {strategy!r}.')
        self.inner = MODELS.build(dict(method)) if method is not None else None
        if not isinstance(self.inner, (FeatureDistill, LogitDistill, type(None))):
            raise MMKDError(
                f'SAKD chooses spots of methods of features or of logits, not of {method["type"]!r}.')
        check_weight(kd_weight, 'kd_weight')
        self.strategy = strategy
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.gamma = gamma
        self.gumbel_temperature = gumbel_temperature
        self.same_family = same_family
        settings = dict(lr_mult=lr_mult, weight_decay=weight_decay)
        self.optimizer_settings = dict(policy=settings, routing=settings) if self._routes else {}
        if self.inner is not None:
            self.first_phase_epochs = self.inner.first_phase_epochs
            self.trains_student_first = self.inner.trains_student_first
            self.needs_train_labels = self.inner.needs_train_labels
        self.policy, self.routing = nn.Module(), nn.Module()

    @property
    def _routes(self) -> bool:
        return self.strategy in ('adaptive', 'reversed')

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        if not is_classifier(student):
            raise MMKDError('SAKD is for classifiers.')
        if len(teachers) != 1:
            raise MMKDError(f'SAKD learns from one teacher, not from {len(teachers)}.')
        teacher, = teachers
        if self._routes and teacher.inference.precision != 'fp32':
            raise MMKDError("SAKD's routing trains through the teacher; leave out teacher.precision.")
        self.layout = logit_layout(student, 'student')
        if self.layout.activation != 'softmax':
            raise MMKDError('SAKD is for classifiers that choose one class.')
        teacher.require_logits(self.layout)
        self._teacher = (teacher, )  # in a tuple: no part of this module
        spots, taught = ['cls_outputs', 'features'], ['cls_outputs', 'features']
        if self.inner is not None:
            self.inner.build(student, teachers, student_cfg)
            spots += self.inner.student_spots
            taught += self.inner.teacher_spots
        self.student_spots = tuple(dict.fromkeys(spots))
        self.teacher_spots = tuple(dict.fromkeys(taught))
        self._connect_spots(student, teacher.model)
        self.register_buffer('chosen', torch.zeros(self.layout.num_classes, len(self.spot_names)), False)
        self.register_buffer('seen', torch.zeros(self.layout.num_classes), False)

    def _connect_spots(self, student: nn.Module, teacher: nn.Module) -> None:
        positions, shapes = [], []
        if isinstance(self.inner, FeatureDistill):
            own, other = (positions_of(spots, len(split(model.backbone).stages), role)
                          for spots, model, role in ((self.inner.student_spots, student, 'student'),
                                                     (self.inner.teacher_spots, teacher, 'teacher')))
            positions = list(zip(own, other, strict=True))
            shapes = list(zip(*self.inner.shapes, strict=True))
        self.spot_names = [*('features' if place == POOLED else f'stage{place}' for place, _ in positions),
                           'logits']
        if self._routes:
            same = type(student.backbone) is type(teacher.backbone)
            same = same if self.same_family is None else self.same_family
            channels = sum(_pooled_channels(model) for model in (student, teacher))
            self.policy = SpotPolicy(channels, len(self.spot_names), self.gumbel_temperature, 10.0 * same)
            self.routing = Routing(positions, shapes)

    def set_train_labels(self, labels: Sequence[int]) -> None:
        self.inner.set_train_labels(labels)

    def end_first_phase(self) -> None:
        self.inner.end_first_phase()

    def forward(self, step: Step) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Returns:
            dict: ``loss_feature`` or ``loss_logit`` of the method inside, ``loss_kd``, and where a policy
            learns ``loss_routing`` and ``loss_balance``; and ``share_<spot>``, the share of samples that are
            distilled at a spot.
        """
        if self.inner is not None:
            self.inner.in_first_phase = self.in_first_phase
            if self.in_first_phase:
                return self._with_all_parameters(self.inner(step))
        taught, = step.teacher_outputs
        (s, ), (t, ) = (self.layout.logits(seen['cls_outputs']) for seen in (step.student_outputs, taught))
        target = _target(step.data_samples, s)
        choices = self._choose(step, len(s))
        losses = {}
        if self._routes:
            losses.update(self._routing_losses(step, choices, s, t, target))
        used = 1 - choices.detach() if self.strategy == 'reversed' else choices.detach()
        if self.inner is not None and self.inner.active:
            of_inner = used[:, :-1] if isinstance(self.inner, FeatureDistill) else used[:, -1:]
            losses.update(self.inner(step, of_inner.unbind(dim=1)))
        divergence = kl_divergence(s, t.detach(), self.temperature)
        losses['loss_kd'] = self.kd_weight * (used[:, -1] * divergence).mean()
        self._count(used, target)
        shares = used.mean(dim=0)
        losses.update({f'share_{name}': share for name, share in zip(self.spot_names, shares, strict=True)})
        return self._with_all_parameters(losses)

    def _choose(self, step: Step, number: int) -> Tensor:
        shape = number, len(self.spot_names)
        if self.strategy in ('always', 'never'):
            return torch.full(shape, float(self.strategy == 'always'), device=step.inputs.device)
        with separate_random_state():
            if self.strategy == 'random':
                return (torch.rand(shape, device=step.inputs.device) < 0.5).float()
            own, other = (_pooled(seen['features']) for seen in (step.student_outputs, step.teacher_outputs[0]))
            return self.policy(own, other)

    def _routing_losses(self, step: Step, choices: Tensor, s: Tensor, t: Tensor, target: Tensor) -> dict:
        teacher, = self._teacher
        first = None
        if isinstance(self.inner, FeatureDistill):
            first = self.inner.levels(step.teacher_outputs[0], self.inner.teacher_spots)[0]
        z = self.routing(step.student, teacher, step.inputs, first, t, choices)
        routed = F.cross_entropy(z.float(), target, reduction='none')
        plain = F.cross_entropy(s.detach().float(), target, reduction='none')
        factor = torch.where(routed.detach() > plain, self.gamma, 1 / self.gamma)
        return dict(loss_routing=(factor * routed).mean(),
                    loss_balance=(len(s) / 2 - choices[:, -1].sum()).clamp(min=0))

    def _with_all_parameters(self, losses: dict) -> dict:
        """Make every parameter part of the losses; DDP would miss those that no sample needed."""
        name = next(name for name in losses if 'loss' in name)
        zeros = [parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad]
        return {**losses, name: losses[name] + sum(zeros)}

    @torch.no_grad()
    def _count(self, used: Tensor, target: Tensor) -> None:
        classes = target if target.dim() == 1 else target.argmax(dim=1)
        self.chosen.index_add_(0, classes, used.to(self.chosen))
        self.seen.index_add_(0, classes, torch.ones_like(classes, dtype=self.seen.dtype))

    def epoch_report(self) -> dict:
        """Return how many samples of every class were seen since the last report, and distilled at each spot.

        Returns:
            dict: ``spots``, ``seen`` (K numbers) and ``chosen`` (K lists, one number per spot), of all ranks.
        """
        counts = [self.seen.clone(), self.chosen.clone()]
        for count in counts:
            if get_world_size() > 1:
                all_reduce(count)
        self.seen.zero_()
        self.chosen.zero_()
        return dict(spots=self.spot_names, seen=counts[0].tolist(), chosen=counts[1].tolist())


def _pooled(seen: list) -> Tensor:
    """Return the last feature that was seen, averaged over places: ``(N, C)``."""
    feature = seen[-1]
    while isinstance(feature, (tuple, list)):
        feature = feature[-1]
    return feature.flatten(2).mean(dim=2) if feature.dim() == 4 else feature


def _pooled_channels(model: nn.Module) -> int:
    return _pooled(probe(model, dict(seen=resolve_spot(model, 'features', 'network')))['seen']).shape[1]


def _target(samples: Sequence, logits: Tensor) -> Tensor:
    """Return labels ``(N,)``, or probabilities ``(N, K)`` of mixed images."""
    if 'gt_score' in samples[0]:
        return torch.stack([sample.gt_score for sample in samples]).to(logits.device).float()
    return torch.cat([sample.gt_label for sample in samples]).to(logits.device)


@MODELS.register_module()
def SAKD(method: str = 'FitNet', strategy: str = 'adaptive', gamma: float | None = None,
         **settings) -> SpotAdaptiveDistill:
    """SAKD in its paper's setting, on top of a method of the zoo.

    Args:
        method: Name of the method.
        strategy: See :class:`SpotAdaptiveDistill`.
        gamma: γ; by default the released settings': 2 for AT, VID and RKD, else 1.
        **settings: Others of :class:`SpotAdaptiveDistill`, and of the method.
    """
    if method not in ZOO_PRESETS:
        raise MMKDError(f'SAKD chooses spots of methods of features or of logits, not of {method!r}'
                        f'{nearest_names(method, ZOO_PRESETS)}.')
    own = ('kd_weight', 'temperature', 'gumbel_temperature', 'same_family', 'lr_mult', 'weight_decay')
    own = {name: settings.pop(name) for name in own if name in settings}
    if gamma is None:
        gamma = 2.0 if method in ('AT', 'VID', 'RKD') else 1.0
    if method == 'FSP':  # not in a stage of its own, where there are no choices, but all along
        settings = {**dict(weight=50.0, first_phase_epochs=0), **settings}
    inner = {**dict(type=f'mmkd.{method}', protocol='sakd'), **settings}
    return SpotAdaptiveDistill(inner, strategy, gamma=gamma, **own)
