"""Distillation of logits through a proxy: the one equation behind KD, DML, SHAKE and SOKD."""
import dataclasses
from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import ModuleList
from torch import Tensor, nn

from ...errors import MMKDError, check_weight
from ...registry import MODELS
from ..losses import bernoulli_kl_divergence, kl_divergence, standardize_logits
from ..proxies import build_proxy
from ..proxies.heads import classification_loss, find_classifiers
from ..spots import SAMPLE_WEIGHTS, LogitLayout, logit_layout
from ..step import Step
from .base import Method
from .teacher_weights import adaptive_weights


@MODELS.register_module()
class ProxyDistill(Method):
    r"""Knowledge passes from teacher T to student S through a proxy P.

    .. math::
        L_{proxy}   &= a \, task(P, Y) + b \, KL(sg(T) ‖ P) + c \, KL(sg(S) ‖ P) \\
        L_{student} &= d \, KL(sg(P) ‖ S) + e \, task(S, Y)

    sg stops gradients; KL is :func:`~mmkd.models.losses.kl_divergence` for softmax heads and
    :func:`~mmkd.models.losses.bernoulli_kl_divergence` for sigmoid heads, at temperature τ, averaged over
    the boxes or places of all ranks by their weights (``sample_weight``), and summed over the stages of a cascade
    by the stages' own weights. Without a proxy, P is the teacher itself and only d and e are left. A term
    of weight 0 is left out.

    ======================  ===================================  ===  ===========  ===  ===  ===
    method                  proxy                                 a    b            c    d    e
    ======================  ===================================  ===  ===========  ===  ===  ===
    KD                      none: the frozen teacher              –    –            –    λ    1
    KDTuned (KD†)           ``TunedTeacher``                      0    0            λ    λ    1
    DML† / DML              ``PeerNetwork``                       1    0            0/λ  λ    1
    SHAKE (paper)           ``ShadowHead('student')``             0    1            λ    λ    1
    SHAKE (released)        ``ShadowHead('teacher')``             1    1 (as MSE)   λ    λ    1
    SOKD                    ``KnowledgeBridge``                   1    λ            λ    λ    1
    ======================  ===================================  ===  ===========  ===  ===  ===

    With several teachers there is a proxy for each; the proxies' losses add up, and the student's is the
    weighted mean over them.

    Args:
        proxy: Config of the proxy, or ``None``.
        temperature: τ.
        proxy_task: a.
        teacher_to_proxy: b.
        student_to_proxy: c, reversed distillation.
        proxy_to_student: d.
        student_task: e.
        sample_weight: Which boxes or places count: ``'uniform'``, ``'foreground'`` or ``'teacher'``, see
            :meth:`~mmkd.models.spots.LogitLayout.weights`. By default ``'uniform'`` for two-stage detectors and
            ``'foreground'`` for dense ones, of whose places nearly all are empty (measured:
            docs/benchmarks/sample_weight.md).
        standardize: Whether all logits are standardized over classes first (softmax heads; probabilities
            of sigmoid heads have a meaning of their own and stay).
        standardize_task: Classifiers: whether the task losses of student and proxy take standardized logits,
            too, as in SHAKE's released code. The student's is then ``loss_task``, in place of its own.
        teacher_loss: ``'kl'``, or ``'mse'``: the mean squared difference of logits in place of
            KL(sg T‖P).
        teacher_weights: Of several teachers, how the student weighs them: ``'equal'`` (AVER) or
            ``'adaptive'`` (AEKD).
    """

    def __init__(self,
                 proxy: dict | None = None,
                 temperature: float = 4.0,
                 proxy_task: float = 0.0,
                 teacher_to_proxy: float = 1.0,
                 student_to_proxy: float = 1.0,
                 proxy_to_student: float = 1.0,
                 student_task: float = 1.0,
                 sample_weight: str | None = None,
                 standardize: bool = False,
                 standardize_task: bool = False,
                 teacher_loss: str = 'kl',
                 teacher_weights: str = 'equal') -> None:
        super().__init__()
        check_weight(temperature, 'temperature')
        if temperature == 0:
            raise MMKDError('The temperature must be above 0.')
        for name, value in (('proxy_task', proxy_task), ('teacher_to_proxy', teacher_to_proxy),
                            ('student_to_proxy', student_to_proxy), ('proxy_to_student', proxy_to_student),
                            ('student_task', student_task)):
            check_weight(value, name)
        for name, value, known in (('sample_weight', sample_weight, (None, *SAMPLE_WEIGHTS)),
                                   ('teacher_loss', teacher_loss, ('kl', 'mse')),
                                   ('teacher_weights', teacher_weights, ('equal', 'adaptive'))):
            if value not in known:
                raise MMKDError(f'`{name}` must be one of {known}, not {value!r}.')
        self.temperature = temperature
        self.proxy_task = proxy_task
        self.teacher_to_proxy = teacher_to_proxy
        self.student_to_proxy = student_to_proxy
        self.proxy_to_student = proxy_to_student
        self.student_task = 0.0 if standardize_task else student_task
        self.standardized_task = student_task if standardize_task else 0.0
        self.task_losses = ('loss_task', ) if standardize_task else ()
        self.sample_weight = sample_weight
        self.standardize = standardize
        self.teacher_loss = teacher_loss
        self.teacher_weights = teacher_weights
        self.proxy_cfg = proxy
        self.layout = LogitLayout()
        self.proxies = ModuleList()

    def build(self, student: nn.Module, teachers: Sequence, student_cfg: dict) -> None:
        self.layout = logit_layout(student, 'student')
        if self.layout.of_images and self.sample_weight not in (None, 'uniform'):
            raise MMKDError(f'sample_weight={self.sample_weight!r} is for detectors; a classifier judges whole images.')
        if self.standardized_task:
            self._standardize_task()
        _check_classifier(student, self.layout, 'student')
        if self.sample_weight is None:
            self.sample_weight = 'foreground' if self.layout.dense else 'uniform'
        for _ in range(max(len(teachers), 1) if self.proxy_cfg else 0):
            self.proxies.append(build_proxy(self.proxy_cfg))
        sees_teacher = not self.proxies or self.teacher_to_proxy > 0
        if not teachers and (sees_teacher or any(proxy.needs_teacher for proxy in self.proxies)):
            raise MMKDError(f'{self.name} learns from a teacher: give `teacher` a config and a checkpoint.')
        for teacher in teachers:
            teacher.require_logits(self.layout)
            _check_classifier(teacher.model, self.layout, 'teacher')
        student_spots, teacher_spots = ['cls_outputs'], ['cls_outputs'] if sees_teacher else []
        if self.sample_weight == 'foreground' and self.layout.of_boxes:
            student_spots.append('cls_targets')
        for index, proxy in enumerate(self.proxies):
            proxy.build(student, teachers[index] if teachers else None, student_cfg, self.layout,
                          task=self.proxy_task > 0)
            student_spots += proxy.student_spots
            teacher_spots += proxy.teacher_spots
        self.student_spots = tuple(dict.fromkeys(student_spots))
        self.teacher_spots = tuple(dict.fromkeys(teacher_spots))

    def _standardize_task(self) -> None:
        if not self.layout.of_images or self.layout.activation != 'softmax':
            raise MMKDError('standardize_task is for classifiers that choose one class.')
        self.layout = dataclasses.replace(self.layout, standardized_task=True)

    @property
    def name(self) -> str:
        """Get what messages call this method."""
        return f'ProxyDistill with {self.proxy_cfg["type"]}' if self.proxy_cfg else 'Distillation of logits'

    def forward(self, step: Step) -> dict[str, Tensor]:
        """See :meth:`Method.forward`.

        Returns:
            dict: ``loss_student``; with a proxy also ``loss_proxy_task``, ``loss_proxy_teacher`` and
            ``loss_proxy_student``, as far as they have a weight; and ``student_teacher_agreement`` and
            ``proxy_teacher_agreement``, the shares of boxes or places on which two have the same most
            likely class.
        """
        own = step.student_outputs['cls_outputs']
        s = self._logits(own)
        taught = [self._logits(seen['cls_outputs']) for seen in step.teacher_outputs if 'cls_outputs' in seen]
        terms = {}
        if self.proxies:
            ran = [proxy(step, index, self.proxy_task > 0) for index, proxy in enumerate(self.proxies)]
            proxies = [self._logits(outputs) for outputs, _ in ran]
        else:
            ran, proxies = [], taught
        counts = self._counts(step, own, ran)
        if taught:
            terms['student_teacher_agreement'] = self._agreement(s, taught[0], counts)
        if taught and self.proxies:
            terms['proxy_teacher_agreement'] = self._agreement(proxies[0], taught[0], counts)

        if self.standardized_task:
            terms['loss_task'] = self.standardized_task * classification_loss(self.layout, step, own)
        terms['loss_student'] = self.proxy_to_student * self._student_loss(s, proxies, counts)
        if self.proxies and self.proxy_task > 0:
            terms['loss_proxy_task'] = self.proxy_task * sum(loss for _, loss in ran)
        if self.proxies and self.teacher_to_proxy > 0:
            divergence = self._squared_error if self.teacher_loss == 'mse' else self._kl
            terms['loss_proxy_teacher'] = self.teacher_to_proxy * sum(
                self._mean_over_samples(divergence, p, t, counts)
                for t, p in zip(taught, proxies, strict=True))
        if self.proxies and self.student_to_proxy > 0:
            terms['loss_proxy_student'] = self.student_to_proxy * sum(
                self._mean_over_samples(self._kl, p, _detached(s), counts) for p in proxies)
        return terms

    def _counts(self, step: Step, own: list, ran: list) -> list[Tensor]:
        """How much every box or place counts; probabilities are of logits as they come."""
        teaching = [seen['cls_outputs'] for seen in step.teacher_outputs if 'cls_outputs' in seen]
        logits = [self.layout.logits(outputs) for outputs in teaching or [outputs for outputs, _ in ran]]
        return self.layout.weights(self.sample_weight, own, _mean(logits), step)

    def _logits(self, outputs: Sequence) -> list[Tensor]:
        logits = self.layout.logits(outputs)
        if self.standardize and self.layout.activation == 'softmax':
            return [standardize_logits(stage) for stage in logits]
        return logits

    def _student_loss(self, s: list[Tensor], proxies: list[list[Tensor]], counts: list[Tensor]) -> Tensor:
        losses = [self._mean_over_samples(self._kl, s, _detached(p), counts) for p in proxies]
        if len(losses) == 1:
            return losses[0]
        if self.teacher_weights == 'equal':
            return sum(losses) / len(losses)
        weights = adaptive_weights([self._gradient(_detached(p), s, counts) for p in proxies])
        return (weights * torch.stack(losses)).sum()

    def _gradient(self, p: list[Tensor], s: list[Tensor], counts: list[Tensor]) -> Tensor:
        """Gradient of KL(P‖S) with respect to S, up to a factor that all teachers share."""
        squash = torch.sigmoid if self.layout.activation == 'sigmoid' else (lambda z: z.softmax(dim=-1))
        tau = self.temperature
        return torch.cat([
            (weight * count[:, None] / mean_over_ranks(count.sum()) *
             (squash(mine.detach() / tau) - squash(other / tau))).flatten()
            for weight, count, mine, other in zip(self.layout.stage_loss_weights, counts, s, p, strict=False)])

    def _mean_over_samples(self, divergence, student: list[Tensor], teacher: list[Tensor],
                           counts: list[Tensor]) -> Tensor:
        stages = [
            weight * (count * divergence(s, t)).sum() / mean_over_ranks(count.sum())
            for weight, s, t, count in zip(self.layout.stage_loss_weights, student, teacher, counts,
                                           strict=False)]
        return sum(stages)

    def _kl(self, student: Tensor, teacher: Tensor) -> Tensor:
        sigmoid = self.layout.activation == 'sigmoid'
        divergence = bernoulli_kl_divergence if sigmoid else kl_divergence
        return divergence(student, teacher, self.temperature)

    def _squared_error(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (teacher - student).square().mean(dim=-1)

    @torch.no_grad()
    def _agreement(self, one: list[Tensor], other: list[Tensor], counts: list[Tensor]) -> Tensor:
        same = sum((count * (a.argmax(dim=-1) == b.argmax(dim=-1))).sum()
                   for a, b, count in zip(one, other, counts, strict=False))
        return same / sum(count.sum() for count in counts).clamp(min=1e-6)


def _check_classifier(model: nn.Module, layout: LogitLayout, role: str) -> None:
    """Check that a detector's scores are logits; those of classifiers are, whatever they come from."""
    if not layout.of_images:
        find_classifiers(model, role)


def _detached(stages: list[Tensor]) -> list[Tensor]:
    return [stage.detach() for stage in stages]


def _mean(of_teachers: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(stages).detach().mean(dim=0) for stages in zip(*of_teachers, strict=True)]


def mean_over_ranks(total: Tensor) -> Tensor:
    """Total weight of a rank, averaged over ranks, so that every sample counts the same."""
    total = total.clone()
    if get_world_size() > 1:
        all_reduce(total, op='mean')
    return total.clamp(min=1e-6)
