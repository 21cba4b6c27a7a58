"""Copies of a network's classification head that do nothing but classify."""
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmengine.model import ModuleList
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...errors import MMKDError, one_line
from ..losses import standardize_logits
from ..spots import (
    LogitLayout,
    classification_heads,
    is_classifier,
    is_query_based,
    is_two_stage,
    library_scope,
    logit_layout,
    module_hooks,
    probe,
    queries_of,
    resolve_spot,
)
from ..spots.queries import class_branches
from ..step import Step
from ..teachers import Teacher


def build_heads(model: nn.Module,
                cfg: Mapping,
                layout: LogitLayout,
                scope: str | None = None,
                settings: Mapping | None = None) -> ModuleList:
    """Build a network's classification heads a second time, a detector's without their box branches.

    Args:
        model: The network.
        cfg: The network's config.
        layout: The layout of the network's logits.
        scope: The registry scope of the config; by default that of the network's library.
        settings: Settings in which the heads differ from the network's, such as ``dict(stacked_convs=6)``.

    Returns:
        ModuleList: One head, or one per cascade stage, with random weights.

    Raises:
        MMKDError: If a head cannot be built like this, or gives no logits without its box branches.
    """
    calls = probe(model, dict(inputs=resolve_spot(model, 'cls_inputs', 'model')))['inputs']
    heads = []
    for head_cfg, args in zip(_head_cfgs(model, cfg), calls, strict=True):
        try:
            with DefaultScope.overwrite_default_scope(scope or library_scope(model)):
                head = MMENGINE_MODELS.build({**copy.deepcopy(head_cfg), **(settings or {})})
            _remove_box_branches(head, args, layout)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise MMKDError(f'The {head_cfg["type"]} cannot be copied as a head that only classifies '
                            f'({one_line(error)}).') from None
        heads.append(head)
    return ModuleList(heads)


def copy_heads(teacher: Teacher, init: str) -> ModuleList:
    """Copy a teacher's classification heads; see :func:`build_heads`.

    Args:
        teacher: The teacher.
        init: The initial weights: ``'random'``, or ``'teacher'`` for the teacher's.
    """
    layout = logit_layout(teacher.model, 'teacher')
    heads = build_heads(teacher.model, teacher.cfg.model, layout, teacher.scope)
    if init == 'teacher':
        for head, original in zip(heads, classification_heads(teacher.model), strict=True):
            weights = original.state_dict()
            head.load_state_dict({name: weights[name] for name in head.state_dict()})
    return heads


def run_heads(heads: Sequence[nn.Module], inputs: Sequence[tuple]) -> list:
    """Call heads with the arguments recorded at ``cls_inputs``.

    Args:
        heads: One head per cascade stage, or one head for all of them.
        inputs: The arguments of each call; fewer than there are heads where a cascade ended early.

    Returns:
        list: The head outputs, one entry per call.
    """
    if len(heads) == 1:
        heads = [heads[0]] * len(inputs)
    outputs = [head(*args) for head, args in zip(heads, inputs, strict=False)]
    if len(heads) == len(inputs):
        return outputs
    # Distributed training waits for gradients of all parameters, also in cascade stages that did not run.
    idle = sum(parameter.sum() * 0 for head in heads[len(inputs):] for parameter in head.parameters()
               if parameter.requires_grad)
    return [(output[0] + idle, *output[1:]) for output in outputs]


def classification_loss(layout: LogitLayout, step: Step, outputs: Sequence) -> Tensor:
    """Return the student's classification loss at other logits than the student's.

    The labels are the student's: labels of the images, mixed ones included (classifiers), of the sampled
    boxes (two-stage detectors), or those that the student's head assigns to these logits (dense and
    query-based detectors).
    Where the loss takes the quality of boxes into account, the boxes are the student's as well.

    Args:
        layout: The layout of the student's logits.
        step: The training step.
        outputs: Head outputs that take the place of the student's.

    Returns:
        Tensor: The loss, a scalar.
    """
    student: Any = step.student
    if layout.of_images:
        (logits, ) = layout.logits(outputs)
        if layout.standardized_task:
            logits = standardize_logits(logits)
        head = student.head if hasattr(student, 'backbone') else student
        return head._get_loss(logits, step.data_samples)['loss']
    if layout.of_queries:
        return _query_loss(layout, step, outputs)
    if layout.of_boxes:
        total = sum(output[0].sum() for output in outputs) * 0
        calls = step.student_outputs['cls_targets']
        for weight, head, output, (args, kwargs) in zip(
                layout.stage_loss_weights, classification_heads(student), outputs, calls, strict=False):
            total = total + weight * head.loss_cls(output[0], *args[1:], **kwargs)
        return total
    (student_output, ) = step.student_outputs['cls_outputs']
    (output, ) = outputs
    mixed = [output[index] if index in layout.reads else [level.detach() for level in levels]
             for index, levels in enumerate(student_output)]
    gt_instances, gt_ignored, metas = unpack_gt_instances(step.data_samples)
    losses = student.bbox_head.loss_by_feat(*mixed, gt_instances, metas, gt_ignored)
    parts = [value for name, value in losses.items() if name in ('loss_cls', 'loss_obj')]
    return sum(sum(part) if isinstance(part, (list, tuple)) else part for part in parts)


def _query_loss(layout: LogitLayout, step: Step, outputs: Sequence) -> Tensor:
    head: Any = step.student.bbox_head
    gt_instances = [sample.gt_instances for sample in step.data_samples]
    metas = [sample.metainfo for sample in step.data_samples]
    logits, boxes, _ = (layout.layers(values) for values in queries_of(outputs))
    return sum(
        weight * head.loss_by_feat_single(layer_logits, layer_boxes.detach(), gt_instances, metas)[0]
        for weight, layer_logits, layer_boxes in zip(layout.stage_loss_weights, logits, boxes, strict=True))


def find_classifiers(model: nn.Module, role: str) -> list[str]:
    """Return the names of the layers whose outputs are a network's class logits, in the order of the calls.

    Args:
        model: The network.
        role: What the network is called in error messages, such as ``'student'``.

    Raises:
        MMKDError: If the logits are not the output of a layer: then they are something else, such as scores
            that were mixed afterward.
    """
    if is_query_based(model):  # what their heads return has been stacked
        return list(dict.fromkeys(class_branches(model)))
    heads = classification_heads(model)
    prefixes = tuple(f'{name}.' for name, module in model.named_modules() if module in heads)
    calls = []

    def record(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        calls.append((name, output))

    layers = [(module, partial(record, name)) for name, module in model.named_modules()
              if name.startswith(prefixes) and not list(module.children())]
    with module_hooks(forward=layers):
        outputs = probe(model, dict(logits=resolve_spot(model, 'cls_logits', role)))['logits']
    levels = [level for output in outputs for level in ([output] if isinstance(output, Tensor) else output)]
    names = [name for level in levels for name, output in calls if output is level]
    if len(names) != len(levels):
        raise MMKDError(f"The class scores of the {role}'s {type(heads[0]).__name__} are not the output of a "
                        'layer, so they are not logits that could be distilled.')
    return names


def freeze_unreached(module: nn.Module, logits: Tensor) -> None:
    """Freeze all parameters of a module that some logits do not depend on.

    Such parameters get no gradient, and distributed training would wait for it.
    """
    for parameter in unreached_parameters(module, logits):
        parameter.requires_grad_(False)


def unreached_parameters(module: nn.Module, output: Tensor) -> list[nn.Parameter]:
    """Return the trainable parameters of a module that an output does not depend on."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def _head_cfgs(model: Any, cfg: Mapping) -> list[Mapping]:
    if is_classifier(model):
        if 'head' not in cfg:
            raise MMKDError(f'{type(model).__name__} has no separate head that could be copied.')
        return [cfg['head']]
    if not is_two_stage(model):
        return [cfg['bbox_head']]
    heads = cfg['roi_head']['bbox_head']
    return list(heads) if isinstance(heads, (list, tuple)) else [heads] * len(classification_heads(model))


def _remove_box_branches(head: nn.Module, args: tuple, layout: LogitLayout) -> None:
    """Remove the layers of a head that its logits do not depend on: box regression and the like."""
    head.eval()
    called: set[str] = set()
    layers = [(module, lambda *_, name=name: called.add(name))
              for name, module in head.named_modules() if name]
    with module_hooks(forward=layers), torch.enable_grad():
        logits = torch.cat([part.flatten() for part in layout.logits([head(*args)])])
    freeze_unreached(head, logits)
    modules = dict(head.named_modules())
    for name in sorted(called, key=len):  # a module before the modules inside it
        parameters = list(modules[name].parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            parent, _, child = name.rpartition('.')
            setattr(modules[parent], child, nn.Identity())
    with torch.no_grad():
        remaining = torch.cat([part.flatten() for part in layout.logits([head(*args)])])
    if not torch.equal(remaining, logits):
        raise RuntimeError('its logits depend on its box branches')
    head.train()
