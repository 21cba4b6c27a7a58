"""A trainable copy of the last part of the teacher."""
import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...errors import MMKDError
from ...random_state import preserved_random_state
from ...registry import MODELS
from ..spots import LogitLayout, classify_map, module_hooks, probe, resolve_spot, split
from ..step import Step
from ..teachers import Teacher
from .base import Proxy
from .heads import copy_heads, run_heads, unreached_parameters


@MODELS.register_module()
class CopiedTail(Proxy):
    """A trainable copy of the last backbone stage, the neck and the head, on the teacher's frozen features.

    This is the knowledge bridge of SOKD (Liu et al., BMVC 2021), as published for classifiers. The stages
    are those of :func:`~mmkd.models.spots.split`; the last stage of a vision transformer is its last block.
    ``tools/model_converters/export_teacher.py`` writes a classifier with the copy in place of the original.

    Args:
        init: The initial weights: ``'random'`` (as in SOKD's released code), or ``'teacher'`` for the
            teacher's. Where the teacher's backbone keeps the statistics of its batch norms in training
            (``norm_eval=True``, as MMDetection's ResNets do), a copy with the teacher's weights keeps them as
            well; a copy with random weights has to learn its statistics.
    """

    needs_teacher = True

    def __init__(self, init: Literal['random', 'teacher'] = 'random') -> None:
        super().__init__()
        self.init = init

    def build(self, student: nn.Module, teacher: Teacher | None, student_cfg: dict, layout: LogitLayout,
              task: bool) -> None:
        super().build(student, teacher, student_cfg, layout, task)
        model: Any = self.teacher.model
        if layout.of_queries:
            raise MMKDError('CopiedTail cannot run the transformer of a query-based detector; use '
                            "CopiedHead('teacher'), in SOKD by last_stage=False.")
        if not hasattr(model, 'backbone'):
            raise MMKDError('CopiedTail needs a teacher with a backbone, a neck and a head, and a '
                            f'{type(model).__name__} has none.')
        stages = split(model.backbone).stages
        if len(stages) < 2:
            raise MMKDError('CopiedTail needs a teacher with at least two stages, and '
                            f"the teacher's {type(model.backbone).__name__} has one.")
        self.stage_input = f'backbone.{stages[-2][0]}'
        self.teacher_spots = (self.stage_input, )
        if not layout.of_images:
            if not model.with_neck:
                raise MMKDError(
                    f'CopiedTail needs a detector with a neck, and a {type(model).__name__} has none.')
            self.heads = copy_heads(self.teacher, self.init)
            # All outputs of the backbone go through the neck; only the last one changes.
            self.teacher_spots += ('backbone', )
            if layout.of_boxes:
                self.student_spots += ('rois', )
        point = resolve_spot(model, self.stage_input, 'teacher')
        (features, ) = probe(model, dict(features=point))['features']
        self.tail = BaseModule()
        self.tail.backbone = _copied_last_stage(model.backbone, features)
        self.tail.neck = copy.deepcopy(model.neck) if model.with_neck else None
        self.tail.with_neck = model.with_neck
        if layout.of_images:
            self.tail.head = copy.deepcopy(model.head)
        else:
            # The stage starts as its layers and blocks initialize themselves.
            self.tail.backbone.init_cfg = None
        self.tail.requires_grad_(True).train()
        if self.init == 'random':
            self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Give all layers of the copy new random weights."""
        for module in self.tail.modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            if hasattr(module, '_is_init'):
                module._is_init = False
        # Other parameters, such as the scales of layers, are constants that only constructors know.
        constants = [f'{prefix}.{name}' for prefix, module in self.tail.backbone.named_modules()
                     if not hasattr(module, 'reset_parameters')
                     for name, _ in module.named_parameters(recurse=False)]
        if constants:
            with preserved_random_state(), DefaultScope.overwrite_default_scope(self.teacher.scope):
                fresh = MMENGINE_MODELS.build(copy.deepcopy(self.teacher.cfg.model.backbone))
            with torch.no_grad():
                for name in constants:
                    name = name.removeprefix('.')  # of the backbone itself
                    self.tail.backbone.get_parameter(name).copy_(fresh.get_parameter(name))

    def train(self, mode: bool = True) -> 'CopiedTail':
        """Set the mode of all modules but those batch norms that keep the teacher's statistics."""
        super().train(mode)
        keeps = self.init == 'teacher' and getattr(self.teacher.model.backbone, 'norm_eval', False)
        for module in self.tail.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode and not keeps)
        return self

    def outputs(self, step: Step, index: int) -> Sequence:
        teacher_outputs = step.teacher_outputs[index]
        (features, ) = teacher_outputs[self.stage_input]
        features = _run_last_stage(self.tail.backbone, features)
        if self.layout.of_images:
            outputs = [classify_map(self.tail, features)]
        else:
            (maps, ) = teacher_outputs['backbone']
            levels = self.tail.neck((*maps[:-1], features))
            outputs = run_heads(self.heads, self._head_inputs(levels, step))
        return self.teacher.class_mapping.outputs(outputs)

    def _head_inputs(self, levels: tuple[Tensor, ...], step: Step) -> list[tuple]:
        if self.layout.dense:
            return [(levels, )]
        rois = step.student_outputs['rois']
        extractors = self.teacher.model.roi_head.bbox_roi_extractor
        if not isinstance(extractors, nn.ModuleList):
            extractors = [extractors] * len(rois)
        return [(extractor(levels[:extractor.num_inputs], boxes), )
                for extractor, boxes in zip(extractors, rois, strict=False)]

    @property
    def export_obstacle(self) -> str | None:
        if self.layout.of_images:
            return None
        return "the teacher's boxes depend on its last stage and its neck, which were trained for classes"

    def replace_weights(self, config: Config, weights: dict[str, Tensor]) -> None:
        weights.update(self.tail.state_dict())


def _run_last_stage(backbone: nn.Module, features: Any) -> Any:
    """Return the last output of a backbone, from the output of the stage before the last one."""
    parts = split(backbone)
    _, stage = parts.stages[-1]
    (output, ) = parts.tail(stage(features))
    return output


def _copied_last_stage(backbone: nn.Module, features: Any) -> nn.Module:
    """Return a copy of a backbone in which all is removed that :func:`_run_last_stage` does not need.

    Args:
        backbone: The backbone.
        features: An output of the stage before the last one.
    """
    backbone = copy.deepcopy(backbone).requires_grad_(True)
    if hasattr(backbone, 'frozen_stages'):
        backbone.frozen_stages = -1  # the copy of a frozen stage is trained as well
    called: set[str] = set()
    hooks = [(module, lambda *_, name=name: called.add(name))
             for name, module in backbone.named_modules() if name]
    with module_hooks(forward=hooks), torch.enable_grad():
        output = _run_last_stage(backbone, features)
    outputs = output if isinstance(output, tuple) else (output, )
    unreached = unreached_parameters(backbone, sum(value.sum() for value in outputs))
    _keep(backbone, '', called, {id(parameter) for parameter in unreached})
    return backbone


def _keep(module: nn.Module, prefix: str, called: set[str], unreached: set[int]) -> None:
    """Remove all descendants of a module that were not called, and parameters of the module itself."""
    for name, parameter in list(module._parameters.items()):
        if id(parameter) in unreached:
            # An empty tensor in its place: some backbones initialize such parameters by name.
            delattr(module, name)
            setattr(module, name, torch.empty(0))
    for name, child in list(module.named_children()):
        path = f'{prefix}{name}'
        if path in called:
            continue
        if any(descendant.startswith(f'{path}.') for descendant in called):
            _keep(child, f'{path}.', called, unreached)
        else:
            setattr(module, name, nn.Identity())
