"""How far the student is from its teacher."""
import copy

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook

from ...models.losses import bernoulli_kl_divergence, kl_divergence
from ...models.spots import Recorder, logit_layout, resolve_spot
from ...models.step import Step
from ...registry import HOOKS
from ..runner_access import unwrapped


@HOOKS.register_module()
class TeacherGapHook(Hook):
    """Logs KL(T‖S) and the top-1 agreement of the first teacher and the student in validation and testing.

    Both networks judge the same images (classifiers), the student's boxes (two-stage; those of the last stage
    of a cascade), or the same places (dense; weighted by the teacher's probability of an object). The
    divergence is in nats at temperature 1. The metrics are ``gap/kl`` and ``gap/agreement``.
    """

    # Before RuntimeInfoHook hands the metrics on to the log.
    priority = 'HIGHEST'

    def before_run(self, runner) -> None:
        self._layout = None
        model = unwrapped(runner)
        if not hasattr(model, 'mmkd') or not model.mmkd.teachers:
            return
        self._layout = logit_layout(model, 'student')
        model.mmkd.teacher.require_logits(self._layout)
        model.mmkd.teacher.add_spots(['cls_outputs'])
        spots = ['cls_outputs', 'rois'] if self._layout.of_boxes else ['cls_outputs']
        self._places = {spot: resolve_spot(model, spot, 'student') for spot in spots}

    def before_val_epoch(self, runner) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self._layout is not None:
            self._recorder = Recorder(unwrapped(runner), self._places)
            self._recorder.__enter__()

    @torch.no_grad()
    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self._layout is None:
            return
        self._recorder.__exit__()
        seen = {spot: self._recorder[spot] for spot in self._places}
        if not seen['cls_outputs']:
            return
        model = unwrapped(runner)
        data = model.data_preprocessor(copy.deepcopy(data_batch), False)
        teacher = model.mmkd.teacher
        answers = teacher.forward(data['inputs'], data['data_samples'], seen.get('rois'), ['cls_outputs'])
        step = Step(model, data['inputs'], data['data_samples'], seen, [answers])
        s, t = (self._layout.logits(outputs)[-1] for outputs in (seen['cls_outputs'], answers['cls_outputs']))
        where = 'teacher' if self._layout.dense else 'all'
        weights = self._layout.weights(where, seen['cls_outputs'], [t], step)[0]
        divergence = kl_divergence if self._layout.activation == 'softmax' else bernoulli_kl_divergence
        same = s.argmax(dim=-1) == t.argmax(dim=-1)
        self._sums += torch.stack([
            (weights * divergence(s, t)).sum(), (weights * same).sum(), weights.sum()]).double().cpu()

    def after_val_epoch(self, runner, metrics=None) -> None:
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
