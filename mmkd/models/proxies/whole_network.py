"""A whole network that is trained beside the student."""
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import separate_random_state
from ...registry import MODELS
from ..spots import (
    HookPoint,
    LogitLayout,
    Recorder,
    check_comparable,
    classify,
    library_scope,
    logit_layout,
    probe,
    record,
    resolve_spot,
)
from ..spots.shared_queries import answer
from ..step import Step
from ..teachers import BatchConverter, Teacher, image_shapes, load_strictly, read_teacher_config
from .base import Proxy
from .heads import classification_loss, freeze_unreached


@MODELS.register_module()
class WholeNetwork(Proxy):
    """A whole network that is trained beside the student, on the student's images.

    A detector's task loss is computed on the network's proposals; its logits are compared on the student's
    boxes.

    - ``WholeNetwork('student')`` is the peer of deep mutual learning (DML, Zhang et al., CVPR 2018). In the
      paper the two networks are updated in turns; here both are updated in one step.
    - ``WholeNetwork('teacher', init='teacher')`` is the tuned teacher, KD† in the SHAKE paper (Li and Jin,
      NeurIPS 2022). The frozen teacher itself stays as it is.

    Args:
        source: Whose architecture the network has, ``'student'`` or ``'teacher'``.
        config: The config of a network of another architecture (as for a teacher), in place of the student's.
        init: The initial weights: ``'random'``, or ``'teacher'`` for the teacher's (with
            ``source='teacher'``).

    Raises:
        MMKDError: If these settings do not go together.
    """

    def __init__(self, source: Literal['student', 'teacher'] = 'student', config: str | dict | None = None,
                 init: Literal['random', 'teacher'] = 'random') -> None:
        super().__init__()
        if source == 'student' and init == 'teacher':
            raise MMKDError("init='teacher' needs source='teacher'.")
        if source == 'teacher' and config is not None:
            raise MMKDError("`config` needs source='student'.")
        self.needs_teacher = source == 'teacher'
        self.source = source
        self.config = config
        self.init = init

    def build(self, student: Any, teacher: Teacher | None, student_cfg: dict, layout: LogitLayout,
              task: bool) -> None:
        super().build(student, teacher, student_cfg, layout, task)
        self._build_network(student, student_cfg, task)
        self.layout = logit_layout(self.network, 'proxy')
        check_comparable(layout, self.layout)
        if self.source == 'student' and self.layout.num_classes != layout.num_classes:
            raise MMKDError(f'The proxy network has {self.layout.num_classes} classes and the student '
                            f'{layout.num_classes}.')
        self.layout = dataclasses.replace(self.layout, standardized_task=layout.standardized_task)
        self.convert = BatchConverter(student.data_preprocessor, self.network.data_preprocessor)
        self.convert.keep_size = True
        self.student_spots = ('rois', ) if self.layout.of_boxes else ()
        if not task:
            compared = self.layout.common(layout)
            logits = torch.cat([part.flatten() for part in compared.logits(self._probe_outputs())])
            freeze_unreached(self.network, logits)

    def _probe_outputs(self) -> list:
        if not self.answers_teacher:
            return probe(self.network, self._points('cls_outputs'), grad=True)['cls_outputs']
        points = dict(inputs=resolve_spot(self.teacher.model, 'decoder_inputs', 'teacher'))
        (teacher_inputs, ) = probe(self.teacher.model, points)['inputs']
        (inputs, ) = probe(self.network, self._points('decoder_inputs'), grad=True)['decoder_inputs']
        return [answer(self.network, inputs, self.teacher.model, teacher_inputs)[0]]

    def _build_network(self, student: nn.Module, student_cfg: dict, task: bool) -> None:
        cfg, scope = student_cfg, None
        if self.source == 'teacher':
            if task and not self.teacher.class_mapping.is_identity:
                raise MMKDError('A copy of a teacher with other classes than the student has no labels to '
                                'learn from: leave out its task loss (proxy_task=0).')
            cfg, scope = self.teacher.cfg.model, self.teacher.scope
        elif self.config is not None:
            whole = read_teacher_config(self.config)
            cfg, scope = whole.model, whole.default_scope
        with DefaultScope.overwrite_default_scope(scope or library_scope(student)):
            self.network = MMENGINE_MODELS.build(copy.deepcopy(cfg))
        if self.init == 'teacher':
            load_strictly(self.network, self.teacher.model.state_dict(), "teacher's weights")

    def forward(self, step: Step, index: int, task: bool) -> tuple[Sequence, Tensor | None]:
        outputs, loss = self._run(step, index, task)
        if self.source == 'teacher':
            outputs = self.teacher.class_mapping.outputs(outputs)
        return outputs, loss

    def _run(self, step: Step, index: int, task: bool) -> tuple[list, Tensor | None]:
        inputs = self.convert(step.inputs, image_shapes(self.network, step.inputs, step.data_samples))
        rois = step.student_outputs.get('rois')
        with separate_random_state():  # sampling and dropout must not change the student's random numbers
            if not task or self.layout.standardized_task:
                recorded = record(self.network, self._points(*self._spots()), inputs, rois, step.data_samples)
                outputs = self._outputs(recorded, step, index)
                # The network's loss() would compare labels with logits that are not standardized.
                network_step = dataclasses.replace(step, student=self.network)
                return outputs, classification_loss(self.layout, network_step, outputs) if task else None
            spots = ('features', ) if self.layout.of_boxes else self._spots()
            with Recorder(self.network, self._points(*spots)) as recorder:
                losses = self.network.loss(inputs, step.data_samples)
            total, _ = self.network.parse_losses(losses)
            if not self.layout.of_boxes:
                return self._outputs({spot: recorder[spot] for spot in spots}, step, index), total
            (features, *_) = recorder['features']
            return [(logits, ) for logits in classify(self.network, features, rois)], total

    def _spots(self) -> tuple[str, ...]:
        return ('decoder_inputs', ) if self.answers_teacher else ('cls_outputs', )

    def _outputs(self, recorded: Mapping[str, list], step: Step, index: int) -> list:
        if not self.answers_teacher:
            return recorded['cls_outputs']
        (teacher_inputs, ) = step.teacher_outputs[index]['decoder_inputs']
        return [answer(self.network, recorded['decoder_inputs'][0], self.teacher.model, teacher_inputs)[0]]

    def _points(self, *spots: str) -> dict[str, HookPoint]:
        return {spot: resolve_spot(self.network, spot, 'proxy') for spot in spots}

    @property
    def export_obstacle(self) -> str | None:
        return None if self.source == 'teacher' else 'it is not a copy of the teacher'

    def replace_weights(self, config: Config, weights: dict[str, Tensor]) -> None:
        weights.update(self.network.state_dict())
