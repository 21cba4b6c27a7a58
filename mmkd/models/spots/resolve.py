"""From the names that users write (spots) to hook points in a network."""
import re

from mmpretrain.models.classifiers import BaseClassifier
from torch import nn

from ...errors import MMKDError, nearest_names
from .memory import MEMORY, memory_point
from .queries import is_query_based, query_spots
from .recorder import HookPoint
from .splitting import stage_names

NAMED_SPOTS = ('features', 'stages', 'last_stage', 'preactivations', 'cls_logits', 'cls_inputs',
               'cls_outputs', 'cls_targets', 'box_targets', 'rois', 'neck_inputs', 'decoder_inputs', MEMORY)
"""Spots that a network has in addition to its modules.

==================  ======================================================================================
``features``        the output of backbone and neck: for detectors the pyramid, a tuple of maps
                    ``(N, C, H_l, W_l)``; for classifiers a tuple, usually of one pooled feature ``(N, C)``
``stages``          the maps ``(N, C, H, W)`` that the stages of the backbone return; ``stage1``, ``stage2``,
                    … and ``last_stage`` are single ones
``preactivations``  these maps before the last ReLU of the stages; the stages of VGG end with a max pooling,
                    and the maps before it have twice the height and width
``cls_logits``      classifiers: logits ``(N, K)``; two-stage detectors: class logits ``(R, K+1)`` of R boxes;
                    dense detectors: a map per level ``(N, A*K, H_l, W_l)`` for A anchors; query-based
                    detectors: ``(L, N, Q, K)`` of L decoder layers, without the queries of denoising groups
``cls_inputs``      the arguments of the classification head: ``features``, RoI features ``(R, C, h, w)``, or
                    the states of the queries in the decoder ``(L, N, Q, C)``
``cls_outputs``     all outputs of the classification head; query-based detectors: see
                    :func:`~mmkd.models.spots.queries.queries_of`
``cls_targets``     two-stage detectors, in training: the arguments of the classification loss
``box_targets``     two-stage detectors, in training: the arguments of the box loss, which is not called for a
                    batch (in a cascade, for a stage) without boxes of objects
``rois``            two-stage detectors: the boxes ``(R, 5)`` as (image, x1, y1, x2, y2)
``neck_inputs``     the outputs of the backbone
``decoder_inputs``  query-based detectors: the named arguments of the decoder
``memory``          query-based detectors: the output of the encoder, with the maps that it was computed from;
                    :func:`~mmkd.models.spots.memory.feature_levels` makes maps ``(N, C, H_l, W_l)`` of it
==================  ======================================================================================

In a cascade there is one record per cascade stage.
"""


def is_classifier(model: nn.Module) -> bool:
    """Return whether a network is one of MMPretrain's classifiers."""
    return isinstance(model, BaseClassifier)


def library_scope(model: nn.Module) -> str:
    """Return the registry scope of the library that a network belongs to."""
    return 'mmpretrain' if is_classifier(model) else 'mmdet'


def is_two_stage(model: nn.Module) -> bool:
    """Return whether a detector classifies boxes that another part of the detector proposes."""
    return getattr(getattr(model, 'roi_head', None), 'bbox_head', None) is not None


def classification_heads(model: nn.Module) -> list[nn.Module]:
    """Return the classification heads of a network.

    Returns:
        list: One head; in a cascade, one per cascade stage; in a classifier of another library (timm), the
        whole network inside the classifier; empty for other networks.
    """
    if is_classifier(model):
        head = getattr(model, 'head', None) or getattr(model, 'model', None)
        return [head] if isinstance(head, nn.Module) else []
    if is_two_stage(model):
        head = model.roi_head.bbox_head
        return list(head) if isinstance(head, nn.ModuleList) else [head]
    head = getattr(model, 'bbox_head', None)
    if is_query_based(model):
        return [head]
    return [head] if hasattr(head, 'cls_out_channels') and hasattr(head, 'prior_generator') else []


def named_spots(model: nn.Module) -> dict[str, HookPoint]:
    """Return the spots that a network has in addition to its modules, by name."""
    spots: dict[str, HookPoint] = {}
    if hasattr(model, 'backbone'):
        spots['features'] = HookPoint('neck' if getattr(model, 'with_neck', False) else 'backbone')
        spots.update(_stage_spots(model.backbone))
        if getattr(model, 'with_neck', False):
            spots['neck_inputs'] = HookPoint('neck', 'input', 0)
    heads = classification_heads(model)
    if not heads:
        return spots
    if is_classifier(model):
        name = 'head' if getattr(model, 'head', None) else 'model'
        spots.update(
            cls_logits=HookPoint(name), cls_inputs=HookPoint(name, 'input'), cls_outputs=HookPoint(name))
        return spots
    if is_query_based(model):
        return {**spots, **query_spots(model), MEMORY: memory_point(model)}
    names: tuple[str, ...] = ('bbox_head', )
    if is_two_stage(model):
        names = ('roi_head.bbox_head', )
        if isinstance(model.roi_head.bbox_head, nn.ModuleList):
            names = tuple(f'roi_head.bbox_head.{stage}' for stage in range(len(heads)))
        extractors = tuple(name.replace('bbox_head', 'bbox_roi_extractor') for name in names)
        spots.update(
            cls_targets=HookPoint(tuple(f'{name}.loss_cls' for name in names), 'call'),
            box_targets=HookPoint(tuple(f'{name}.loss_bbox' for name in names), 'call'),
            # Masks may come from the same extractor, which is called for boxes first.
            rois=HookPoint(extractors, 'input', 1, first=True))
    head = names if len(names) > 1 else names[0]
    spots.update(
        cls_logits=HookPoint(head, 'output', 0),
        cls_inputs=HookPoint(head, 'input'),
        cls_outputs=HookPoint(head))
    return spots


def _stage_spots(backbone: nn.Module) -> dict[str, HookPoint]:
    stages = stage_names(backbone)
    if not stages:
        return {}
    names = [f'backbone.{name}' for name in stages]
    spots = {f'stage{number}': HookPoint(name) for number, name in enumerate(names, 1)}
    spots.update(stages=HookPoint(tuple(names)), last_stage=HookPoint(names[-1]))
    relus = [_last_relu(backbone, name) for name in stages]
    if all(relus):
        modules = tuple(f'backbone.{relu}' for relu in relus)
        spots['preactivations'] = HookPoint(modules, 'input', 0, last=True)
    else:
        spots['preactivations'] = spots['stages']
    return spots


def _last_relu(backbone: nn.Module, stage: str) -> str | None:
    """Return the name of the ReLU that a stage ends with; ``None`` if it is not a module."""
    module = backbone.get_submodule(stage)
    if isinstance(module, nn.MaxPool2d):  # the last layer of a stage of VGG, whose layers form one sequence
        sequence, _, index = stage.rpartition('.')
        return _last_relu(backbone, f'{sequence}.{int(index) - 1}')
    name, last = list(module.named_children())[-1]
    if isinstance(last, nn.ReLU):
        return f'{stage}.{name}'
    return f'{stage}.{name}.relu' if isinstance(getattr(last, 'relu', None), nn.ReLU) else None


def resolve_spot(model: nn.Module, spot: str, role: str) -> HookPoint:
    """Return the hook point of a spot.

    Args:
        model: The network.
        spot: The name of a spot, such as ``cls_logits``; the dotted name of any module for its output; or
            that name with ``:input`` appended for its first argument.
        role: What the network is called in error messages, such as ``'student'``.

    Raises:
        MMKDError: If the network has no such spot; the nearest names are offered.
    """
    spots = named_spots(model)
    if spot in spots:
        return spots[spot]
    modules = [name for name, _ in model.named_modules() if name and not name.startswith('mmkd')]
    if spot in modules:
        return HookPoint(spot)
    if spot.removesuffix(':input') in modules:
        return HookPoint(spot.removesuffix(':input'), 'input', 0)
    message = f'The {role} {type(model).__name__} has no spot {spot!r}'
    if spot in ('stages', 'last_stage', 'preactivations') or re.fullmatch(r'stage\d+', spot):
        backbone = getattr(model, 'backbone', model)
        stages = stage_names(backbone)
        if stages:
            raise MMKDError(f'{message}: its backbone has {len(stages)} stages.')
        raise MMKDError(f'{message}: it is not known what the stages of its backbone '
                        f"{type(backbone).__name__} are; name modules of the backbone, such as "
                        "'backbone.layer3'.")
    if spot == MEMORY:
        raise MMKDError(f"{message}: it has no encoder, as only query-based detectors (the DETR family) do; "
                        "the maps of other detectors are at 'neck'.")
    if spot in NAMED_SPOTS:
        raise MMKDError(f'{message}: it has no classification head whose logits belong to its proposals '
                        '(two-stage), to fixed locations (dense) or to queries (the DETR family).')
    raise MMKDError(f'{message}{nearest_names(spot, [*spots, *modules])}.')
