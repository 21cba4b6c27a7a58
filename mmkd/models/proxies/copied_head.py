"""A copy of a classification head."""
from collections.abc import Mapping, Sequence
from typing import Literal

from mmengine.config import Config
from mmengine.model import ModuleList
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..spots import LogitLayout, resolve_spot
from ..step import Step
from ..teachers import Teacher
from .base import Proxy
from .heads import build_heads, copy_heads, find_classifiers, run_heads
from .improved_teacher import replace_heads
from .query_heads import QueryClassifiers, student_query_outputs, teacher_query_outputs


@MODELS.register_module()
class CopiedHead(Proxy):
    """A trainable copy of the student's or the teacher's classification head, on the same features.

    Gradients flow into the student's features, but not into the teacher's. A detector's head is copied
    without its box branches. The head of a query-based detector classifies by one linear layer per decoder
    layer, so its copy has one as well, whatever the ``depth``.

    - ``CopiedHead('student')`` is the shadow head of SHAKE (Li and Jin, NeurIPS 2022, as in the text of the
      paper).
    - ``CopiedHead('teacher')`` is the knowledge bridge of SOKD (Liu et al., BMVC 2021) on detectors.
    - ``CopiedHead('teacher', init='teacher')`` is variant "F" of KD†, the tuned teacher of the SHAKE paper.

    Args:
        source: Whose head is copied, ``'student'`` or ``'teacher'``.
        init: The initial weights: ``'random'``, or ``'teacher'`` for the weights of the teacher's head (with
            ``source='teacher'``).
        depth: ``'head'`` copies the whole classification head: its convolutions and fully connected layers.
            ``'last_layer'`` copies only the last layer, on the input of the student's last layer (with
            ``source='student'``).
        settings: Settings in which the copy differs from the student's head, such as
            ``dict(stacked_convs=6)`` for a stronger one (with ``source='student'`` and ``depth='head'``).

    Raises:
        MMKDError: If these settings do not go together.
    """

    def __init__(self, source: Literal['student', 'teacher'] = 'student',
                 init: Literal['random', 'teacher'] = 'random',
                 depth: Literal['head', 'last_layer'] = 'head', settings: Mapping | None = None) -> None:
        super().__init__()
        if source == 'student' and init == 'teacher':
            raise MMKDError("init='teacher' needs source='teacher'.")
        if source == 'teacher' and (depth != 'head' or settings):
            raise MMKDError("Other values of `depth` and `settings` need source='student'.")
        if depth == 'last_layer' and settings:
            raise MMKDError("`settings` need depth='head'.")
        self.needs_teacher = source == 'teacher'
        self.source = source
        self.init = init
        self.depth = depth
        self.settings = settings

    def build(self, student: nn.Module, teacher: Teacher | None, student_cfg: dict, layout: LogitLayout,
              task: bool) -> None:
        super().build(student, teacher, student_cfg, layout, task)
        if layout.of_queries:
            self._copy_class_branches(student, layout)
        elif self.source == 'teacher':
            self.teacher_spots = ('cls_inputs', )
            self.heads = copy_heads(self.teacher, self.init)
        elif self.depth == 'head':
            self.student_spots += ('cls_inputs', )
            self.heads = build_heads(student, student_cfg, layout, settings=self.settings)
        else:
            self._copy_last_layers(student, student_cfg, layout)

    def _copy_class_branches(self, student: nn.Module, layout: LogitLayout) -> None:
        if self.settings:
            raise MMKDError('The class branches of a query-based detector are linear layers, which have no '
                            '`settings` in which a copy could differ.')
        self.layout = layout.without_proposals()
        self.predicts_for = self.source
        if self.source == 'student':
            self.student_spots = ('cls_inputs', )
            self.heads = QueryClassifiers(student, layout, self.init)
        else:
            self.teacher_spots = ('cls_inputs', 'cls_outputs')
            self.heads = QueryClassifiers(self.teacher.model, layout, self.init)

    def _copy_last_layers(self, student: nn.Module, student_cfg: dict, layout: LogitLayout) -> None:
        if len(layout.reads) > 1:
            raise MMKDError("depth='last_layer' needs a head whose logits are the output of one layer, but "
                            f"the student's {type(student).__name__} combines class scores with objectness.")
        names = find_classifiers(student, 'student')
        prefixes = resolve_spot(student, 'cls_outputs', 'student').modules
        layers = {}
        for prefix, head in zip(prefixes, build_heads(student, student_cfg, layout), strict=True):
            head.init_weights()  # here, because the head knows how to initialize the layer, and goes away
            for name in names:
                if name.startswith(f'{prefix}.'):
                    layers[name] = head.get_submodule(name.removeprefix(f'{prefix}.'))
        self.layers = ModuleList(layers.values())
        self.layer_spots = [f'{name}:input' for name in layers]
        self.student_spots += tuple(self.layer_spots)

    def outputs(self, step: Step, index: int) -> Sequence:
        if self.layout.of_queries:
            return self._query_outputs(step, index)
        if self.source == 'teacher':
            outputs = run_heads(self.heads, step.teacher_outputs[index]['cls_inputs'])
            return self.teacher.class_mapping.outputs(outputs)
        if self.depth == 'head':
            return run_heads(self.heads, step.student_outputs['cls_inputs'])
        logits = [layer(features) for spot, layer in zip(self.layer_spots, self.layers, strict=True)
                  for features in step.student_outputs[spot]]
        if self.layout.of_images:
            return logits
        return [(logits, )] if self.layout.dense else [(scores, ) for scores in logits]

    def _query_outputs(self, step: Step, index: int) -> Sequence:
        if self.source == 'student':
            ((states, ), ) = step.student_outputs['cls_inputs']
            return student_query_outputs(step, self.heads(states))
        ((states, ), ) = step.teacher_outputs[index]['cls_inputs']
        return teacher_query_outputs(step, index, self.teacher, self.heads(states))

    @property
    def export_obstacle(self) -> str | None:
        return None if self.source == 'teacher' else "it is a head on the student's features"

    def replace_weights(self, config: Config, weights: dict[str, Tensor]) -> None:
        if self.layout.of_queries:
            weights.update(self.heads.named_weights())
        else:
            replace_heads(config, weights, self.teacher, self.heads)
