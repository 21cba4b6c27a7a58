"""The gap between the student and its teacher."""
import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...models.losses import bernoulli_kl_divergence, kl_divergence
from ...models.spots import HookPoint, LogitLayout, Recorder, build_match, logit_layout, resolve_spot
from ...models.step import Step
from ...registry import HOOKS
from ..runner_access import unwrapped


@HOOKS.register_module()
class TeacherGapHook(Hook):
    """Logs KL(T‖S) and the top-1 agreement of the first teacher and the student on validation and test data.

    Both networks classify the same images (classifiers), the student's boxes (two-stage; the boxes of the
    last stage of a cascade), or the same locations (dense; weighted by the teacher's probability of an
    object). The divergence is in nats, at temperature 1. The metrics are ``gap/kl`` and ``gap/agreement``.
    """

    # Before RuntimeInfoHook passes the metrics on to the log.
    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._layout: LogitLayout | None = None
        self._points: dict[str, HookPoint] = {}
        self._recorder: Recorder | None = None
        self._sums = torch.zeros(3, dtype=torch.float64)

    def before_run(self, runner: Runner) -> None:
        self._layout = None
        model = unwrapped(runner)
        if not hasattr(model, 'mmkd') or not model.mmkd.teachers:
            return
        self._layout = logit_layout(model, 'student').last_layer()
        model.mmkd.teacher.require_logits(self._layout)
        self._match = build_match('hungarian', self._layout, model, [model.mmkd.teacher])
        model.mmkd.teacher.add_spots(['cls_outputs'])
        spots = ['cls_outputs', 'rois'] if self._layout.of_boxes else ['cls_outputs']
        self._points = {spot: resolve_spot(model, spot, 'student') for spot in spots}

    def before_val_epoch(self, runner: Runner) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._recorder = None
        if self._layout is None:
            return
        model = unwrapped(runner)

        def recorded_predict(*args, **kwargs):
            del model.predict  # the class's again; the hooks below would outlive a failing step otherwise
            with Recorder(model, self._points) as self._recorder:
                return model.predict(*args, **kwargs)

        model.predict = recorded_predict

    @torch.no_grad()
    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence | None = None) -> None:
        if self._layout is None or self._recorder is None or not self._recorder['cls_outputs']:
            return
        student_outputs = {spot: self._recorder[spot] for spot in self._points}
        model = unwrapped(runner)
        data = model.data_preprocessor(copy.deepcopy(data_batch), False)
        teacher_outputs = model.mmkd.teacher.forward(
            data['inputs'], data['data_samples'], student_outputs.get('rois'), ['cls_outputs'])
        step = Step(model, data['inputs'], data['data_samples'], student_outputs, [teacher_outputs])
        outputs = self._match.align(
            teacher_outputs['cls_outputs'], self._match.match(step, teacher_outputs['cls_outputs']))
        student_logits = self._layout.logits(student_outputs['cls_outputs'])[-1]
        teacher_logits = self._layout.logits(outputs)[-1]
        sample_weight = 'uniform' if self._layout.of_images or self._layout.of_boxes else 'teacher'
        weights = self._match.weights(
            sample_weight, [student_outputs['cls_outputs']], [outputs], [step])[0][-1]
        divergence = kl_divergence if self._layout.activation == 'softmax' else bernoulli_kl_divergence
        same = student_logits.argmax(dim=-1) == teacher_logits.argmax(dim=-1)
        self._sums += torch.stack([
            (weights * divergence(student_logits, teacher_logits)).sum(), (weights * same).sum(),
            weights.sum()]).double().cpu()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self._layout is None:
            return
        all_reduce(self._sums)
        kl, agreement, total = self._sums.tolist()
        if metrics is not None and total > 0:
            metrics.update({'gap/kl': kl / total, 'gap/agreement': agreement / total})

    before_test_epoch = before_val_epoch
    before_test_iter = before_val_iter
    after_test_iter = after_val_iter
    after_test_epoch = after_val_epoch
