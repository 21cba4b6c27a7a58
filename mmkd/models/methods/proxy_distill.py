"""Distillation of logits through a proxy: the one equation behind KD, DML, SHAKE and SOKD."""
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, Literal

import torch
from mmengine.model import ModuleList
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ...settings import Fraction, NonNegativeFloat, Temperature
from ..losses import bernoulli_kl_divergence, kl_divergence, standardize_logits
from ..proxies import build_proxy
from ..proxies.heads import classification_loss, find_classifiers
from ..reduction import mean_over_ranks
from ..spots import LogitLayout, QueryMatching, SampleMatch, SampleWeight, build_match, logit_layout
from ..step import Step
from ..teachers import Teacher
from .base import Method, check_teachers
from .mixins import OptimizerSettings
from .teacher_weights import TeacherWeights, adaptive_weights

PROXY_WARMUP = 0.25
"""Fraction of the training during which a proxy that starts from random weights gains its influence
(measured in docs/benchmarks/proxies.md)."""


@MODELS.register_module()
class ProxyDistill(OptimizerSettings, Method):
    r"""Knowledge passes from a teacher T to the student S through a proxy P.

    .. math::
        L_{proxy}   &= a \, task(P, Y) + b \, KL(sg(T) ‖ P) + c \, KL(sg(S) ‖ P) \\
        L_{student} &= d \, KL(sg(P) ‖ S) + e \, task(S, Y)

    sg stops gradients. KL is :func:`~mmkd.models.losses.kl_divergence` for softmax heads and
    :func:`~mmkd.models.losses.bernoulli_kl_divergence` for sigmoid heads, at temperature τ. It is averaged
    over the images, boxes, locations or queries of all ranks by their weights (``sample_weight``), and summed
    over the stages of a cascade or the layers of a decoder by their loss weights. Without a proxy, P is the
    teacher, and only d and e are left. A term of weight 0 is not computed.

    =================  ===========================================  ===  ===========  ===  ===  ===
    method             proxy                                         a    b            c    d    e
    =================  ===========================================  ===  ===========  ===  ===  ===
    KD                 none: the frozen teacher                      –    –            –    w    1
    KDTuned (KD†)      ``WholeNetwork('teacher', init='teacher')``   0    0            w    w    1
    DML† / DML         ``WholeNetwork('student')``                   1    0            0/w  w    1
    SHAKE (paper)      ``CopiedHead('student')``                     0    w            λw   w    1
    SHAKE (released)   ``FrozenHeadLayers('fusion')``                1    w (as MSE)   λw   w    1
    SOKD               ``CopiedTail`` or ``CopiedHead('teacher')``   1    w            λw   w    1
    =================  ===========================================  ===  ===========  ===  ===  ===

    The KL terms of the proxy are smallest where P is the mixture (b·T + c·S) / (b + c), so the teacher's
    effective weight on the student is d·b / (b + c). With b = 1 it would stay below 1, however large c and d
    are; hence w, the ``weight`` of a preset, is a factor of b, c and d, and the effective weight of SHAKE and
    SOKD is w / (1 + λ), with λ their ``reversed_weight``.

    A proxy that starts from random weights has to learn before it can teach: unless ``warmup`` is set, c and
    d rise from 0 in the first quarter of the training (:data:`PROXY_WARMUP`).

    Every one of several teachers has a proxy. The losses of the proxies are added up; the student's loss is
    the weighted mean over them.

    Args:
        proxy: The config of the proxy; ``None`` for none.
        temperature: The temperature τ.
        proxy_task: The weight a of the proxy's task loss.
        teacher_to_proxy: The weight b of what the proxy learns from the teacher.
        student_to_proxy: The weight c of reversed distillation, from the student to the proxy.
        proxy_to_student: The weight d of what the student learns from the proxy.
        student_task: The weight e of the student's task loss.
        sample_weight: Which boxes, locations or queries count: ``'uniform'``, ``'foreground'`` or
            ``'teacher'``, see :meth:`~mmkd.models.spots.LogitLayout.weights`. The default is ``'uniform'``
            for two-stage detectors, ``'foreground'`` for dense ones, nearly all locations of which are empty
            (measured in docs/benchmarks/sample_weight.md), and ``'teacher'`` for query-based ones.
        query_match: Query-based detectors: which queries are compared. ``'hungarian'``: those that predict
            the same object, see :class:`~mmkd.models.spots.query_match.HungarianMatch`. ``'shared'``: the
            student answers the teacher's queries, see
            :class:`~mmkd.models.spots.shared_queries.SharedQueries`.
        standardize: Whether all logits are standardized over classes before they are compared; ``None`` for
            those of classifiers. This is for softmax heads; the logits of sigmoid heads stay as they are,
            because each of them is the probability of a class.
        standardize_task: Classifiers: whether the task losses of student and proxy take standardized logits
            as well, as in SHAKE's released code. The student's task loss is then ``loss_task``.
        teacher_loss: How the proxy imitates the teacher: ``'kl'``, or ``'mse'`` for the mean squared
            difference of logits.
        teacher_weights: How the student weights several teachers: ``'equal'`` (AVER) or ``'adaptive'``
            (AEKD).
        tolerance: The largest weight that one of several teachers can have with ``'adaptive'``.
        proxy_lr_mult: The learning rate of the proxies, relative to the student's.
    """

    proxy_losses = ('loss_proxy_task', 'loss_proxy_teacher')
    imitation_losses = ('loss_proxy_teacher', )
    takes_choices = True
    output_spots = ('logits', )

    def __init__(self, proxy: dict | None = None, temperature: Temperature = 4.0,
                 proxy_task: NonNegativeFloat = 0.0, teacher_to_proxy: NonNegativeFloat = 1.0,
                 student_to_proxy: NonNegativeFloat = 1.0, proxy_to_student: NonNegativeFloat = 1.0,
                 student_task: NonNegativeFloat = 1.0, sample_weight: SampleWeight | None = None,
                 standardize: bool | None = False, standardize_task: bool = False,
                 teacher_loss: Literal['kl', 'mse'] = 'kl',
                 teacher_weights: TeacherWeights = 'equal', tolerance: Fraction = 0.6,
                 proxy_lr_mult: NonNegativeFloat = 1.0, query_match: QueryMatching = 'hungarian') -> None:
        super().__init__()
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
        self.tolerance = tolerance
        self.proxy_lr_mult = proxy_lr_mult
        self.query_match = query_match
        self.proxy_cfg = proxy
        self.layout = LogitLayout()
        self.match = SampleMatch(self.layout)
        self.proxies = ModuleList()

    def choose_proxy(self) -> dict | None:
        """Return the config of the proxy; overridden where it depends on the student's layout."""
        return self.proxy_cfg

    def build(self, student: nn.Module, teachers: Sequence[Teacher], student_cfg: dict) -> None:
        self.layout = logit_layout(student, 'student')
        if self.layout.of_images and self.sample_weight not in (None, 'uniform'):
            raise MMKDError(f'sample_weight={self.sample_weight!r} is for detectors; a classifier has one '
                            'prediction for the whole image.')
        if self.standardized_task:
            if not self.layout.of_images or self.layout.activation != 'softmax':
                raise MMKDError('standardize_task is for classifiers that choose one class.')
            self.layout = dataclasses.replace(self.layout, standardized_task=True)
        if not self.layout.of_images:  # what a classifier returns is logits in any case
            find_classifiers(student, 'student')
        if self.sample_weight is None:
            self.sample_weight = self.layout.default_sample_weight
        if self.standardize is None:
            self.standardize = self.layout.of_images
        if self.teacher_weights == 'adaptive' and self.tolerance * len(teachers) < 1:
            raise MMKDError(f'tolerance={self.tolerance} is too small for {len(teachers)} teachers, whose '
                            f'weights add up to 1; it must be at least {1 / len(teachers):.2f}.')
        self._build_proxies(len(teachers))
        reads_teacher = not self.proxies or self.teacher_to_proxy > 0
        if reads_teacher or any(proxy.needs_teacher for proxy in self.proxies):
            check_teachers(type(self).__name__, teachers)
        for teacher in teachers:
            # Decoder layers that one of the networks lacks are not compared.
            self.layout = self.layout.common(teacher.require_logits(self.layout))
            if not self.layout.of_images:
                find_classifiers(teacher.model, 'teacher')
        student_spots = ['cls_outputs']
        teacher_spots = ['cls_outputs'] if reads_teacher else []
        if self.sample_weight == 'foreground' and self.layout.of_boxes:
            student_spots.append('cls_targets')
        for index, proxy in enumerate(self.proxies):
            proxy.answers_teacher = self.layout.of_queries and self.query_match == 'shared' and bool(teachers)
            proxy.build(student, teachers[index] if teachers else None, student_cfg, self.layout,
                        task=self.proxy_task > 0)
            student_spots += proxy.student_spots
            teacher_spots += proxy.teacher_spots
            self.layout = self.layout.common(proxy.layout)
        self.match = build_match(self.query_match, self.layout, student, teachers)
        self.layout = self.match.layout
        student_spots += self.match.student_spots
        teacher_spots += self.match.teacher_spots
        self.student_spots = tuple(dict.fromkeys(student_spots))
        self.teacher_spots = tuple(dict.fromkeys(teacher_spots))

    def _build_proxies(self, number_of_teachers: int) -> None:
        cfg = self.choose_proxy()
        if cfg is not None:
            self.proxies.extend(build_proxy(cfg) for _ in range(max(number_of_teachers, 1)))
            self.optimizer_settings = dict(proxies=dict(lr_mult=self.proxy_lr_mult))
        if self.warmup is None and any(proxy.starts_untrained for proxy in self.proxies):
            self.warmup = PROXY_WARMUP

    def forward(self, step: Step, choices: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the terms of both equations.

        Args:
            step: The outputs that were recorded in the training step.
            choices: Which images the student is distilled on, one tensor ``(N,)``; by default all of them.
                The divisor of the mean over images, boxes or locations remains the weight of all of them.
                Proxies always learn from all images.

        Returns:
            dict: ``loss_student``; with a proxy also ``loss_proxy_task``, ``loss_proxy_teacher`` and
            ``loss_proxy_student``, as far as their weights are above 0; and ``student_teacher_agreement`` and
            ``proxy_teacher_agreement``, the weighted shares of images, boxes, locations or queries for which
            the two networks predict the same class.
        """
        steps = [self.match.step(step, index)
                 for index in range(max(len(self.proxies), len(step.teacher_outputs)))]
        student_outputs = [step.student_outputs['cls_outputs'] for step in steps]
        teacher_outputs, proxy_outputs, proxy_task_losses = self._other_outputs(steps)
        students = [self._logits(outputs) for outputs in student_outputs]
        teachers = [self._logits(outputs) for outputs in teacher_outputs]
        proxies = [self._logits(outputs) for outputs in proxy_outputs] if self.proxies else teachers
        # The weights are never taken from standardized logits.
        weights = self.match.weights(self.sample_weight or 'uniform', student_outputs,
                                     teacher_outputs or proxy_outputs, steps)

        terms = {}
        if teachers:
            terms['student_teacher_agreement'] = self._agreement(students[0], teachers[0], weights[0])
        if teachers and self.proxies:
            terms['proxy_teacher_agreement'] = self._agreement(proxies[0], teachers[0], weights[0])
        if self.standardized_task:
            task_loss = classification_loss(self.layout, step, student_outputs[0])
            terms['loss_task'] = self.standardized_task * task_loss
        chosen = [
            repeat(1.0) if choices is None else self.layout.per_row(choices[0], step) for step in steps]
        terms['loss_student'] = self.proxy_to_student * self._student_loss(students, proxies, weights, chosen)
        if self.proxies and self.proxy_task > 0:
            terms['loss_proxy_task'] = self.proxy_task * sum(proxy_task_losses)
        if self.proxies and self.teacher_to_proxy > 0:
            divergence = _squared_error if self.teacher_loss == 'mse' else self._kl
            terms['loss_proxy_teacher'] = self.teacher_to_proxy * sum(
                self._mean_over_samples(divergence, proxy, teacher, weight)
                for proxy, teacher, weight in zip(proxies, teachers, weights, strict=True))
        if self.proxies and self.student_to_proxy > 0:
            terms['loss_proxy_student'] = self.student_to_proxy * sum(
                self._mean_over_samples(self._kl, proxy, _detached(student), weight)
                for proxy, student, weight in zip(proxies, students, weights, strict=True))
        return terms

    def _other_outputs(self, steps: Sequence[Step]) -> tuple[list[Sequence], list[Sequence], list]:
        """Return the outputs of teachers and proxies in the student's order, and the proxies' task losses."""
        teacher_outputs, proxy_outputs, task_losses = [], [], []
        for index, step in enumerate(steps):
            match = None
            if index < len(step.teacher_outputs) and 'cls_outputs' in step.teacher_outputs[index]:
                outputs = step.teacher_outputs[index]['cls_outputs']
                match = self.match.match(step, outputs)
                teacher_outputs.append(self.match.align(outputs, match))
            if self.proxies:
                proxy = self.proxies[index]
                outputs, task_loss = proxy(step, index, self.proxy_task > 0)
                if proxy.predicts_for == 'student':
                    match = None
                elif proxy.predicts_for == 'itself' or match is None:
                    match = self.match.match(step, outputs)
                proxy_outputs.append(self.match.align(outputs, match))
                task_losses.append(task_loss)
        return teacher_outputs, proxy_outputs, task_losses

    def _logits(self, outputs: Sequence) -> list[Tensor]:
        logits = self.layout.logits(outputs)
        if self.standardize and self.layout.activation == 'softmax':
            return [standardize_logits(stage) for stage in logits]
        return logits

    def _student_loss(self, students: list[list[Tensor]], proxies: list[list[Tensor]],
                      weights: list[list[Tensor]], chosen: list[Any]) -> Tensor:
        losses = [self._mean_over_samples(self._kl, student, _detached(proxy), *rows)
                  for student, proxy, *rows in zip(students, proxies, weights, chosen, strict=True)]
        if len(losses) == 1:
            return losses[0]
        if self.teacher_weights == 'equal':
            return sum(losses) / len(losses)
        gradients = [self._gradient(student, _detached(proxy), weight)
                     for student, proxy, weight in zip(students, proxies, weights, strict=True)]
        return (adaptive_weights(gradients, self.tolerance) * torch.stack(losses)).sum()

    def _gradient(self, student: list[Tensor], proxy: list[Tensor], weights: list[Tensor]) -> Tensor:
        """Return the gradient of KL(P‖S) with respect to S, averaged over the batch, ``(stages * K,)``.

        It is right up to a factor that all teachers share.
        """
        gradients = []
        for stage_weight, weight, student_logits, proxy_logits in zip(
                self.layout.stage_loss_weights, weights, student, proxy, strict=False):
            difference = self._probabilities(student_logits.detach()) - self._probabilities(proxy_logits)
            share = stage_weight * weight[:, None] / mean_over_ranks(weight.sum())
            gradients.append((share * difference).sum(dim=0))
        return torch.cat(gradients)

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits / self.temperature
        return logits.sigmoid() if self.layout.activation == 'sigmoid' else logits.softmax(dim=-1)

    def _mean_over_samples(self, divergence: Callable[[Tensor, Tensor], Tensor], student: list[Tensor],
                           teacher: list[Tensor], weights: list[Tensor],
                           chosen: Iterable = repeat(1.0)) -> Tensor:
        """Return the weighted mean of a divergence over all samples, summed over the stages of a cascade.

        The divergences of samples that are not ``chosen`` count as 0.
        """
        stages = zip(self.layout.stage_loss_weights, student, teacher, weights, chosen, strict=False)
        return sum(
            stage_weight * (weight * stage_chosen * divergence(student_logits, teacher_logits)).sum() /
            mean_over_ranks(weight.sum())
            for stage_weight, student_logits, teacher_logits, weight, stage_chosen in stages)

    def _kl(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.layout.activation == 'sigmoid':
            return bernoulli_kl_divergence(student, teacher, self.temperature)
        return kl_divergence(student, teacher, self.temperature)

    @torch.no_grad()
    def _agreement(self, first: list[Tensor], second: list[Tensor], weights: list[Tensor]) -> Tensor:
        agreeing = sum(
            (weight * (a.argmax(dim=-1) == b.argmax(dim=-1))).sum()
            for a, b, weight in zip(first, second, weights, strict=False))
        return agreeing / sum(weight.sum() for weight in weights).clamp(min=1e-6)


def _squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher - student).square().mean(dim=-1)


def _detached(stages: list[Tensor]) -> list[Tensor]:
    return [stage.detach() for stage in stages]

