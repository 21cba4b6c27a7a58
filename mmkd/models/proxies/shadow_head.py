"""The shadow head of SHAKE: a cheap proxy between the teacher and the student."""
from collections.abc import Mapping

from mmengine.model import ModuleList
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..spots import LogitLayout, resolution_stages, resolve_spot
from ..step import Step
from .base import Proxy
from .heads import build_heads, classification_loss, find_classifiers, run_heads
from .networks import Network
from .pyramid_fusion import StageFusion, build_fusion


@MODELS.register_module()
class ShadowHead(Proxy):
    """SHAKE's proxy (Li and Jin, NeurIPS 2022): a second classification head, from random weights.

    Args:
        placement: ``'student'`` (the paper's text): a second head on the student's features, into which its
            gradient flows. ``'teacher'`` (the released form): trainable layers that fuse features of the
            frozen teacher, under the teacher's own frozen head. ``'alone'``: a network of its own, built
            like the student.
        depth: With ``placement='student'``: ``'head'`` builds all of the student's classification head
            anew (its convolutions and fully connected layers, without box branches); ``'last_layer'`` builds
            only the last layer, on what the student's own last layer sees.
        head: With ``placement='student'``: settings in which the shadow head differs from the student's,
            such as ``dict(stacked_convs=6)`` for a stronger one.
    """

    def __init__(self, placement: str = 'student', depth: str = 'head', head: dict | None = None) -> None:
        super().__init__()
        if placement not in ('student', 'teacher', 'alone'):
            raise MMKDError("ShadowHead knows placement='student', 'teacher' and 'alone', not "
                            f'{placement!r}.')
        if depth not in ('head', 'last_layer'):
            raise MMKDError(f"ShadowHead knows depth='head' and depth='last_layer', not {depth!r}.")
        if (depth != 'head' or head) and placement != 'student':
            raise MMKDError("ShadowHead's `depth` and `head` go with placement='student'.")
        if depth != 'head' and head:
            raise MMKDError("ShadowHead's `head` goes with depth='head'.")
        self.placement = placement
        self.depth = depth
        self.changes = head

    @property
    def needs_teacher(self) -> bool:
        return self.placement == 'teacher'

    def build(self, student: nn.Module, teacher, student_cfg: dict, layout: LogitLayout,
                task: bool) -> None:
        self.layout = layout
        if self.placement == 'alone':
            self.network = Network(student_cfg, student, layout, task)
            self.student_spots = self.network.student_spots
        elif self.placement == 'teacher':
            self.teacher = teacher
            self._build_fusion(layout)
        elif self.depth == 'head':
            self.student_spots = ('cls_inputs', )
            self.heads = build_heads(student, student_cfg, layout, changes=self.changes)
        else:
            self._build_last_layers(student, student_cfg, layout)
        if task and self.placement != 'alone' and layout.of_boxes:
            self.student_spots = (*self.student_spots, 'cls_targets')

    def _build_fusion(self, layout: LogitLayout) -> None:
        if layout.of_images:
            stages = resolution_stages(self.teacher.model, 'teacher', 3)
            self.teacher_spots = tuple(name for name, _ in stages)
            self.fusion = StageFusion([channels for _, channels in stages])
        else:
            self.teacher_spots = ('cls_inputs', )
            self.fusion = build_fusion(self.teacher.model)

    def _build_last_layers(self, student: nn.Module, student_cfg: dict, layout: LogitLayout) -> None:
        if len(layout.reads) > 1:
            raise MMKDError("depth='last_layer' needs a head whose logits come from one layer, and the "
                            f"student's {type(student).__name__} mixes class and objectness.")
        names = find_classifiers(student, 'student')
        prefixes = resolve_spot(student, 'cls_outputs', 'student').modules
        layers = {}
        for prefix, head in zip(prefixes, build_heads(student, student_cfg, layout), strict=True):
            head.init_weights()  # while it is whole; a layer alone does not know how
            for name in names:
                if name.startswith(f'{prefix}.'):
                    layers[name] = head.get_submodule(name.removeprefix(f'{prefix}.'))
        self.layers = ModuleList(layers.values())
        self.names = list(layers)
        self.student_spots = tuple(f'{name}:input' for name in self.names)

    def forward(self, step: Step, index: int, task: bool) -> tuple[list, Tensor | None]:
        if self.placement == 'alone':
            return self.network(step, task)
        if self.placement == 'teacher':
            outputs = self._run_fusion(step.teacher_outputs[index])
        elif self.depth == 'head':
            outputs = run_heads(self.heads, step.student_outputs['cls_inputs'])
        else:
            outputs = self._run_last_layers(step.student_outputs)
        return outputs, classification_loss(self.layout, step, outputs) if task else None

    def _run_fusion(self, seen: Mapping[str, list]) -> list:
        if self.layout.of_images:
            return self.teacher.classify_map(self.fusion([seen[spot][0] for spot in self.teacher_spots]))
        return self.teacher.run_frozen_head([(self.fusion(args[0]), ) for args in seen['cls_inputs']])

    def _run_last_layers(self, seen: Mapping[str, list]) -> list:
        given = [layer(vectors) for name, layer in zip(self.names, self.layers, strict=True)
                 for vectors in seen[f'{name}:input']]
        if self.layout.of_images:
            return given
        return [(given, )] if self.layout.dense else [(logits, ) for logits in given]
