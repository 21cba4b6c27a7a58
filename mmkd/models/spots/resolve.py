"""From the names that users write (spots) to places in a network."""
from torch import nn

from ...errors import MMKDError, nearest_names
from .recorder import Place

_TWO_STAGE = {
    'cls_logits': Place('roi_head.bbox_head', 'output', 0),
    'cls_features': Place('roi_head.bbox_head', 'input', 0),
    'cls_embedding': Place('roi_head.bbox_head.fc_cls', 'input', 0),
    'rois': Place('roi_head.bbox_roi_extractor', 'input', 1),
}
"""Spots of two-stage detectors: class logits ``(R, K+1)`` of R boxes, the RoI features ``(R, C, h, w)``
and the vectors ``(R, D)`` they are computed from, and the boxes ``(R, 5)`` as (image, x1, y1, x2, y2)."""


def named_spots(model: nn.Module) -> dict[str, Place]:
    """Return the spots that a model has besides its modules, by name."""
    roi_head = getattr(model, 'roi_head', None)
    bbox_head = getattr(roi_head, 'bbox_head', None)
    if bbox_head is None or isinstance(bbox_head, nn.ModuleList):
        return {}
    return _TWO_STAGE


def resolve_spot(model: nn.Module, spot: str, role: str) -> Place:
    """Find a spot in a model.

    Args:
        model: The network.
        spot: A spot's name, such as ``cls_logits``, or the dotted name of any module.
        role: How messages call the model, for instance ``'student'``.

    Raises:
        MMKDError: If the model has no such spot; the nearest names are offered.
    """
    spots = named_spots(model)
    if spot in spots:
        return spots[spot]
    modules = [name for name, _ in model.named_modules() if name and not name.startswith('mmkd')]
    if spot in modules:
        return Place(spot)
    if spot in _TWO_STAGE:
        raise MMKDError(
            f'The {role} {type(model).__name__} has no spot {spot!r}: logits are distilled on detectors '
            'with one RoI classification head (Faster R-CNN and its kin) in this version.')
    raise MMKDError(f'The {role} {type(model).__name__} has no spot {spot!r}'
                    f'{nearest_names(spot, [*spots, *modules])}.')
