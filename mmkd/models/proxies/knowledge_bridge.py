"""The knowledge bridge of SOKD: a trainable copy of the teacher's last part."""
import copy

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import MMKDError
from ...registry import MODELS
from ..spots import (
    LogitLayout,
    classify_map,
    is_two_stage,
    keep_last_stage,
    last_stage,
    logit_layout,
    probe,
    resolve_spot,
    run_last_stage,
)
from ..step import Step
from .base import Proxy
from .heads import build_heads, classification_loss, load_head_weights, run_heads


@MODELS.register_module()
class KnowledgeBridge(Proxy):
    """SOKD's proxy (Liu et al., BMVC 2021): a copy of the teacher's last part, on its frozen features.

    For classifiers that is all from the last stage on, as published; for detectors the classification head.
    ``tools/model_converters/export_teacher.py`` writes the teacher with the bridge in its place.

    Args:
        init: ``'random'`` weights (the released code), or the ``'teacher'``'s. Where the teacher's backbone
            keeps the statistics of its batch norms in training (``norm_eval=True``, as MMDetection's ResNets
            do), a copy of its last stage with its weights keeps them as well; one with random weights has to
            learn its own.
        last_stage: Detectors: whether to copy the last stage of the backbone and the neck, too.
    """

    needs_teacher = True

    def __init__(self, init: str = 'random', last_stage: bool = False) -> None:
        super().__init__()
        if init not in ('random', 'teacher'):
            raise MMKDError(f"KnowledgeBridge knows init='random' and init='teacher', not {init!r}.")
        self.init = init
        self.last_stage = last_stage
        self._copied = ()  # in a tuple: a part of this module by another name

    def build(self, student: nn.Module, teacher, student_cfg: dict, layout: LogitLayout,
                task: bool) -> None:
        self.layout, self.teacher = layout, teacher
        if layout.of_images:
            self._copy_last_stage_of_a_classifier()
            return
        own = logit_layout(teacher.model, 'teacher')
        self.heads = build_heads(teacher.model, teacher.cfg.model, own, teacher.scope)
        if self.init == 'teacher':
            load_head_weights(self.heads, teacher.model)
        self.teacher_spots = ('cls_inputs', )
        if task and layout.of_boxes:
            self.student_spots = ('cls_targets', )
        if self.last_stage:
            self._copy_last_stage()

    def _copy_last_stage_of_a_classifier(self) -> None:
        model = self.teacher.model
        if not hasattr(model, 'backbone'):
            raise MMKDError(f'A knowledge bridge needs a teacher with a backbone, neck and head, and a '
                            f'{type(model).__name__} has none.')
        spot = f'backbone.{last_stage(model.backbone)}:input'
        (given, ) = probe(model, dict(seen=resolve_spot(model, spot, 'teacher')))['seen']
        self.teacher_spots = (spot, )
        self.tail = BaseModule()
        self.tail.backbone = copy.deepcopy(model.backbone)
        keep_last_stage(self.tail.backbone, given)
        self.tail.neck, self.tail.head = copy.deepcopy(model.neck), copy.deepcopy(model.head)
        self.tail.with_neck = model.with_neck
        self.tail.requires_grad_(True).train()
        self._copied = (self.tail.backbone, )
        if self.init == 'random':
            _reset_parameters(self.tail)

    def _copy_last_stage(self) -> None:
        model = self.teacher.model
        names = getattr(model.backbone, 'res_layers', None)
        if not names or not getattr(model, 'with_neck', False):
            raise MMKDError('last_stage=True needs a teacher with a ResNet-like backbone and a neck, not '
                            f'{type(model.backbone).__name__}.')
        stages = len(names)
        if model.backbone.out_indices[-1] != stages - 1:
            raise MMKDError("last_stage=True needs a teacher whose neck reads the backbone's last stage.")
        self.stage = copy.deepcopy(getattr(model.backbone, names[-1]))
        self.neck = copy.deepcopy(model.neck)
        for part in (self.stage, self.neck):
            part.requires_grad_(True)
            if self.init == 'random':
                _reset_parameters(part)
        self._copied = (self.stage, )
        self.stage_input = f'backbone.{names[-1]}:input'
        self.teacher_spots = (self.stage_input, 'backbone')
        if is_two_stage(model):
            self.student_spots = (*self.student_spots, 'rois')

    def init_weights(self) -> None:
        if self.init == 'random':
            super().init_weights()

    def train(self, mode: bool = True) -> 'KnowledgeBridge':
        """Set the mode of all but those batch norms that keep the teacher's statistics."""
        super().train(mode)
        for stage in self._copied:
            keeps = self.init == 'teacher' and getattr(self.teacher.model.backbone, 'norm_eval', False)
            for module in stage.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(mode and not keeps)
        return self

    def forward(self, step: Step, index: int, task: bool) -> tuple[list, Tensor | None]:
        seen = step.teacher_outputs[index]
        if self.layout.of_images:
            (given, ) = seen[self.teacher_spots[0]]
            logits = classify_map(self.tail, run_last_stage(self.tail.backbone, given))
            outputs = self.teacher.class_mapping.outputs([logits])
            return outputs, classification_loss(self.layout, step, outputs) if task else None
        inputs = self._inputs(seen, step) if self.last_stage else seen['cls_inputs']
        outputs = self.teacher.class_mapping.outputs(run_heads(self.heads, inputs))
        return outputs, classification_loss(self.layout, step, outputs) if task else None

    def _inputs(self, seen: dict, step: Step) -> list[tuple]:
        ((*stages, _), ), (given, ) = seen['backbone'], seen[self.stage_input]
        features = self.neck((*stages, self.stage(given)))
        if self.layout.dense:
            return [(features, )]
        extractors = self.teacher.model.roi_head.bbox_roi_extractor
        if not isinstance(extractors, nn.ModuleList):
            extractors = [extractors] * len(step.student_outputs['rois'])
        return [(extractor(features[:extractor.num_inputs], rois), )
                for extractor, rois in zip(extractors, step.student_outputs['rois'], strict=False)]


def _reset_parameters(part: nn.Module) -> None:
    """Give all layers of a part new random weights."""
    for module in part.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
        if hasattr(module, '_is_init'):
            module._is_init = False
