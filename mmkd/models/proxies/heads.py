"""Copies of a network's classification head that do nothing but classify."""
import copy
from collections.abc import Mapping, Sequence

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
    is_two_stage,
    library_scope,
    probe,
    resolve_spot,
)
from ..step import Step


def build_heads(model: nn.Module,
                cfg: Mapping,
                layout: LogitLayout,
                scope: str | None = None,
                changes: Mapping | None = None) -> ModuleList:
    """Build a network's classification heads anew, a detector's without their box branches.

    Args:
        model: The network.
        cfg: Its config.
        layout: Of its logits.
        scope: The scope of its config, if it is not its library's.
        changes: Settings of the head that shall differ, such as ``dict(stacked_convs=6)``.

    Returns:
        ModuleList: A head, or one per stage of a cascade, with random weights.

    Raises:
        MMKDError: If a head cannot be built so, or gives no logits without its box branches.
    """
    inputs = probe(model, dict(seen=resolve_spot(model, 'cls_inputs', 'model')))['seen']
    heads = []
    for head_cfg, args in zip(_head_cfgs(model, cfg), inputs, strict=True):
        try:
            with DefaultScope.overwrite_default_scope(scope or library_scope(model)):
                head = MMENGINE_MODELS.build({**copy.deepcopy(head_cfg), **(changes or {})})
            _keep_what_gives_logits(head, args, layout)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise MMKDError(f'A copy of the {head_cfg["type"]} cannot be built as a classifier only '
                            f'({one_line(error)}).') from None
        heads.append(head)
    return ModuleList(heads)


def load_head_weights(heads: Sequence[nn.Module], model: nn.Module) -> None:
    """Give copies of a detector's heads the detector's own weights."""
    for head, own in zip(heads, classification_heads(model), strict=True):
        weights = own.state_dict()
        head.load_state_dict({name: weights[name] for name in head.state_dict()})


def run_heads(heads: Sequence[nn.Module], inputs: Sequence[tuple]) -> list:
    """Call heads with what was recorded at ``cls_inputs``; one head serves all stages."""
    if len(heads) == 1:
        heads = [heads[0]] * len(inputs)
    outputs = [head(*args) for head, args in zip(heads, inputs, strict=False)]
    if len(heads) == len(inputs):
        return outputs
    # Where a cascade ended early, the parameters of later stages still belong to the graph.
    idle = sum(parameter.sum() * 0 for head in heads[len(inputs):] for parameter in head.parameters()
               if parameter.requires_grad)
    return [(output[0] + idle, *output[1:]) for output in outputs]


def classification_loss(layout: LogitLayout, step: Step, outputs: Sequence) -> Tensor:
    """Return the student's own classification loss, at other logits than the student's.

    The labels are the student's: those of the images, mixed ones included (classifiers), those of its sampled
    boxes (two-stage), or those that its head assigns to these logits (dense). Where its loss takes the
    quality of boxes into account, they are the student's boxes, too.

    Args:
        layout: Of the student's logits.
        step: The training step.
        outputs: Head outputs in place of the student's.
    """
    if layout.of_images:
        (logits, ) = layout.logits(outputs)
        if layout.standardized_task:
            logits = standardize_logits(logits)
        owner = step.student.head if hasattr(step.student, 'backbone') else step.student
        return owner._get_loss(logits, step.data_samples)['loss']
    if layout.of_boxes:
        total = sum(output[0].sum() for output in outputs) * 0
        calls = step.student_outputs['cls_targets']
        heads = classification_heads(step.student)
        for weight, head, output, (args, kwargs) in zip(layout.stage_loss_weights, heads, outputs, calls,
                                                        strict=False):
            total = total + weight * head.loss_cls(output[0], *args[1:], **kwargs)
        return total
    (own, ), (output, ) = step.student_outputs['cls_outputs'], outputs
    mixed = [output[index] if index in layout.reads else [level.detach() for level in levels]
             for index, levels in enumerate(own)]
    gt_instances, gt_ignored, metas = unpack_gt_instances(step.data_samples)
    losses = step.student.bbox_head.loss_by_feat(*mixed, gt_instances, metas, gt_ignored)
    parts = [value for name, value in losses.items() if name in ('loss_cls', 'loss_obj')]
    return sum(sum(part) if isinstance(part, (list, tuple)) else part for part in parts)


def find_classifiers(model: nn.Module, role: str) -> list[str]:
    """Return the names of the layers that give a network's class logits, in the order of their calls.

    Raises:
        MMKDError: If the logits come out of no layer: then they are something else, such as scores that
            were mixed afterward.
    """
    heads = [name for name, module in model.named_modules() if module in classification_heads(model)]
    layers = {name for name, module in model.named_modules()
              if any(name.startswith(f'{head}.') for head in heads) and not list(module.children())}
    calls = []
    handles = [model.get_submodule(name).register_forward_hook(
        lambda module, args, output, name=name: calls.append((name, output))) for name in layers]
    try:
        outputs = probe(model, dict(seen=resolve_spot(model, 'cls_logits', role)))['seen']
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for output in outputs:
        for level in [output] if isinstance(output, Tensor) else output:
            found += [name for name, given in calls if given is level]
    wanted = sum(1 if isinstance(output, Tensor) else len(output) for output in outputs)
    if len(found) != wanted:
        head = type(classification_heads(model)[0]).__name__
        raise MMKDError(f'The class scores of the {role}\'s {head} are no layer\'s output, so they are no '
                        'logits that could be distilled.')
    return found


def freeze_what_logits_do_not_reach(module: nn.Module, logits: Tensor) -> None:
    """Freeze all parameters of a module that some logits do not depend on.

    They would have no gradient, and distributed training would wait for it.
    """
    for parameter in _unreached(module, logits):
        parameter.requires_grad_(False)


def _head_cfgs(model: nn.Module, cfg: Mapping) -> list[Mapping]:
    if is_classifier(model):
        if 'head' not in cfg:
            raise MMKDError(f'A {type(model).__name__} has no head of its own that could be copied.')
        return [cfg['head']]
    if not is_two_stage(model):
        return [cfg['bbox_head']]
    heads = cfg['roi_head']['bbox_head']
    return list(heads) if isinstance(heads, (list, tuple)) else [heads] * len(classification_heads(model))


def _keep_what_gives_logits(head: nn.Module, args: tuple, layout: LogitLayout) -> None:
    """Take out of a head what its logits do not need: box regression and the like."""
    head.eval()
    called = []
    handles = [module.register_forward_hook(lambda *_, name=name: called.append(name))
               for name, module in head.named_modules() if name]
    with torch.enable_grad():
        logits = torch.cat([one.flatten() for one in layout.logits([head(*args)])])
    for handle in handles:
        handle.remove()
    unreached = {id(parameter) for parameter in _unreached(head, logits)}
    removed = []
    for name in sorted(set(called), key=len):
        if any(name.startswith(f'{other}.') for other in removed):
            continue
        parameters = list(head.get_submodule(name).parameters())
        if parameters and all(id(parameter) in unreached for parameter in parameters):
            parent, _, child = name.rpartition('.')
            setattr(head.get_submodule(parent), child, nn.Identity())
            removed.append(name)
    for parameter in head.parameters():
        if id(parameter) in unreached:
            parameter.requires_grad_(False)
    with torch.no_grad():
        again = torch.cat([one.flatten() for one in layout.logits([head(*args)])])
    if not torch.equal(again, logits):
        raise RuntimeError('its logits depend on its box branches')
    head.train()


def _unreached(module: nn.Module, logits: Tensor) -> list[nn.Parameter]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]
