"""Trainable layers between the frozen teacher's features and its frozen classification head."""
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ...registry import MODELS
from ..spots import LogitLayout
from ..spots.queries import classify_states
from ..step import Step
from ..teachers import Teacher
from .base import Proxy
from .fusion import StageFusion, build_adapter, build_fusion, fused_spots
from .query_heads import StateAdapter, StateFusion, teacher_query_outputs


@MODELS.register_module()
class FrozenHeadLayers(Proxy):
    """Trainable layers on the teacher's frozen features, under the teacher's frozen head.

    Args:
        layers: ``'fusion'``: layers that fuse the last three stages of a classifier, every level of a
            detector's pyramid with the finer level, or the queries' states in every decoder layer with those
            in the layer before; they start from random weights (SHAKE, Li and Jin,
            NeurIPS 2022, as in the released code). ``'adapter'``: a small residual transformation of the
            features, which starts as the identity (variant "G" of KD†, the tuned teacher of the SHAKE paper).
    """

    needs_teacher = True

    def __init__(self, layers: Literal['fusion', 'adapter'] = 'fusion') -> None:
        super().__init__()
        self.layers = layers

    def build(self, student: nn.Module, teacher: Teacher | None, student_cfg: dict, layout: LogitLayout,
              task: bool) -> None:
        super().build(student, teacher, student_cfg, layout, task)
        self.teacher_spots = ('cls_inputs', )
        if layout.of_queries:
            self._build_for_queries(layout)
            return
        self.fuses_stages = self.layers == 'fusion' and layout.of_images
        if self.layers == 'adapter':
            self.module = build_adapter(self.teacher.model)
        elif self.fuses_stages:
            channels = fused_spots(self.teacher.model)
            self.teacher_spots = tuple(channels)
            self.module = StageFusion(list(channels.values()))
        else:
            self.module = build_fusion(self.teacher.model)

    def _build_for_queries(self, layout: LogitLayout) -> None:
        self.layout = layout.without_proposals()
        self.predicts_for = 'teacher'
        self.teacher_spots = ('cls_inputs', 'cls_outputs')
        model: Any = self.teacher.model
        if self.layers == 'adapter':
            self.module = StateAdapter(model.embed_dims)
        else:
            self.module = StateFusion(model.embed_dims, model.decoder.num_layers)

    @property
    def starts_untrained(self) -> bool:
        return self.layers == 'fusion'

    def outputs(self, step: Step, index: int) -> Sequence:
        teacher_outputs = step.teacher_outputs[index]
        if self.layout.of_queries:
            ((states, ), ) = teacher_outputs['cls_inputs']
            logits = classify_states(self.teacher.model, self.module(states))
            return teacher_query_outputs(step, index, self.teacher, logits)
        if self.fuses_stages:
            maps = [teacher_outputs[spot][0] for spot in self.teacher_spots]
            return self.teacher.classify_map(self.module(maps))
        inputs = [(self.module(args[0]), ) for args in teacher_outputs['cls_inputs']]
        return self.teacher.run_frozen_head(inputs)

    @property
    def export_obstacle(self) -> str | None:
        return 'its trainable layers are not part of an ordinary teacher'
