"""From the names that users write (spots) to points in a network."""
import re

from torch import nn

try:
    from mmpretrain.models.classifiers import BaseClassifier
except ImportError:  # needed for classifiers only
    BaseClassifier = ()

from ...errors import MMKDError, nearest_names
from .recorder import HookPoint
from .splitting import split

NAMED_SPOTS = ('features', 'stages', 'last_stage', 'preactivations', 'cls_logits', 'cls_inputs',
               'cls_outputs', 'cls_targets', 'rois')
"""Spots that networks have besides their modules.

==================  ======================================================================================
``features``        what backbone and neck give: detectors: the pyramid, a tuple of maps ``(N, C, H_l, W_l)``;
                    classifiers: a tuple, mostly of one pooled feature ``(N, C)``
``stages``          the maps ``(N, C, H, W)`` that the backbone's stages give; ``stage1``, ``stage2``, … and
                    ``last_stage`` are single ones
``preactivations``  the same before the stages' last ReLU; of VGG, whose stages end with a max pooling, before
                    that as well, with twice the height and width
``cls_logits``      classifiers: logits ``(N, K)``; two-stage: class logits ``(R, K+1)`` of R boxes; dense: a
                    map per level ``(N, A*K, H_l, W_l)`` for A anchors
``cls_inputs``      what the classification head is called with: ``features``, or RoI features
                    ``(R, C, h, w)``
``cls_outputs``     all that it gives
``cls_targets``     two-stage, in training: what its classification loss is called with
``rois``            two-stage: the boxes ``(R, 5)`` as (image, x1, y1, x2, y2)
==================  ======================================================================================

A cascade records an entry per stage.
"""


def is_classifier(model: nn.Module) -> bool:
    """Whether a network is one of MMPretrain's classifiers."""
    return isinstance(model, BaseClassifier)


def library_scope(model: nn.Module) -> str:
    """Return the registry scope of the library that a network's kind belongs to."""
    return 'mmpretrain' if is_classifier(model) else 'mmdet'


def is_two_stage(model: nn.Module) -> bool:
    """Whether a detector classifies boxes that another part of it proposes."""
    return getattr(getattr(model, 'roi_head', None), 'bbox_head', None) is not None


def classification_heads(model: nn.Module) -> list[nn.Module]:
    """Return the heads that classify: one, or one per stage of a cascade; none for other models.

    Of a classifier from another library (timm), that is the whole network inside it.
    """
    if is_classifier(model):
        head = getattr(model, 'head', None) or getattr(model, 'model', None)
        return [head] if isinstance(head, nn.Module) else []
    if is_two_stage(model):
        head = model.roi_head.bbox_head
        return list(head) if isinstance(head, nn.ModuleList) else [head]
    head = getattr(model, 'bbox_head', None)
    return [head] if hasattr(head, 'cls_out_channels') and hasattr(head, 'prior_generator') else []


def named_spots(model: nn.Module) -> dict[str, HookPoint]:
    """Return the spots that a model has besides its modules, by name."""
    spots = {}
    if hasattr(model, 'backbone'):
        spots['features'] = HookPoint('neck' if getattr(model, 'with_neck', False) else 'backbone')
        spots.update(_stage_spots(model.backbone))
    heads = classification_heads(model)
    if not heads:
        return spots
    if is_classifier(model):
        head = 'head' if getattr(model, 'head', None) else 'model'
        return dict(spots, cls_logits=HookPoint(head), cls_inputs=HookPoint(head, 'input'), cls_outputs=HookPoint(head))
    if not is_two_stage(model):
        head = 'bbox_head'
    elif isinstance(model.roi_head.bbox_head, nn.ModuleList):
        head = tuple(f'roi_head.bbox_head.{stage}' for stage in range(len(heads)))
    else:
        head = 'roi_head.bbox_head'
    spots.update(
        cls_logits=HookPoint(head, 'output', 0),
        cls_inputs=HookPoint(head, 'input'),
        cls_outputs=HookPoint(head, 'output'))
    if is_two_stage(model):
        spots.update(
            cls_targets=HookPoint(_inside(head, 'loss_cls'), 'call'),
            # Masks may come from the same extractor, which is called for boxes first.
            rois=HookPoint(_siblings(head, 'bbox_roi_extractor'), 'input', 1, first=True))
    return spots


def stage_names(backbone: nn.Module) -> list[str]:
    """Return the names of a backbone's stages, in order; none where it is not known what they are."""
    try:
        return [name for name, _ in split(backbone).stages]
    except MMKDError:
        return list(getattr(backbone, 'res_layers', None) or [])


def _stage_spots(backbone: nn.Module) -> dict[str, HookPoint]:
    own = stage_names(backbone)
    if not own:
        return {}
    names = [f'backbone.{name}' for name in own]
    spots = {f'stage{number}': HookPoint(name) for number, name in enumerate(names, 1)}
    spots.update(stages=HookPoint(tuple(names)), last_stage=HookPoint(names[-1]))
    ends = [_last_relu(backbone, name) for name in own]
    if all(ends):
        modules = tuple(f'backbone.{end}' for end in ends)
        spots['preactivations'] = HookPoint(modules, 'input', 0, last=True)
    else:
        spots['preactivations'] = spots['stages']
    return spots


def _last_relu(backbone: nn.Module, stage: str) -> str | None:
    """Return the name of the ReLU that a stage ends with, if it is a module."""
    module = backbone.get_submodule(stage)
    if isinstance(module, nn.MaxPool2d):  # the last layer of a stage of VGG, in one sequence with all others
        sequence, _, index = stage.rpartition('.')
        return _last_relu(backbone, f'{sequence}.{int(index) - 1}')
    name, last = list(module.named_children())[-1]
    if isinstance(last, nn.ReLU):
        return f'{stage}.{name}'
    return f'{stage}.{name}.relu' if isinstance(getattr(last, 'relu', None), nn.ReLU) else None


def resolve_spot(model: nn.Module, spot: str, role: str) -> HookPoint:
    """Find a spot in a model.

    Args:
        model: The network.
        spot: A spot's name, such as ``cls_logits``; the dotted name of any module for what it gives; or
            that name with ``:input`` for what it is given.
        role: How messages call the model, for instance ``'student'``.

    Raises:
        MMKDError: If the model has no such spot; the nearest names are offered.
    """
    spots = named_spots(model)
    if spot in spots:
        return spots[spot]
    modules = [name for name, _ in model.named_modules() if name and not name.startswith('mmkd')]
    if spot in modules:
        return HookPoint(spot)
    if spot.removesuffix(':input') in modules:
        return HookPoint(spot.removesuffix(':input'), 'input', 0)
    if spot in ('stages', 'last_stage', 'preactivations') or re.fullmatch(r'stage\d+', spot):
        names = stage_names(getattr(model, 'backbone', model))
        raise MMKDError(f'The {role} {type(model).__name__} has no spot {spot!r}: ' + (
            f'its backbone has {len(names)} stages.' if names else
            f"its backbone {type(getattr(model, 'backbone', model)).__name__} does not say what its stages "
            "are; name modules of it, such as 'backbone.layer3'."))
    if spot in NAMED_SPOTS:
        raise MMKDError(
            f'The {role} {type(model).__name__} has no spot {spot!r}: it has no classification head whose '
            'logits belong to boxes of its own (two-stage) or to fixed points (dense).')
    raise MMKDError(f'The {role} {type(model).__name__} has no spot {spot!r}'
                    f'{nearest_names(spot, [*spots, *modules])}.')


def _inside(heads: str | tuple[str, ...], child: str) -> str | tuple[str, ...]:
    return f'{heads}.{child}' if isinstance(heads, str) else tuple(f'{head}.{child}' for head in heads)


def _siblings(heads: str | tuple[str, ...], name: str) -> str | tuple[str, ...]:
    if isinstance(heads, str):
        return heads.replace('bbox_head', name)
    return tuple(head.replace('bbox_head', name) for head in heads)
