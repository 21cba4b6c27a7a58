"""Running parts of a detector: its classification head, and the whole of it on a blank image."""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .recorder import Place, Recorder
from .resolve import classification_heads, is_two_stage

_PROBE_SIZE = 256  # large enough for a few places on the coarsest of the usual levels


def classify(model: nn.Module, features: Sequence[Tensor], rois: Sequence[Tensor] | None = None) -> list:
    """Run a detector's classification head on a pyramid.

    Args:
        model: The detector.
        features: Its pyramid, maps ``(N, C, H_l, W_l)``.
        rois: Two-stage detectors: the boxes ``(R, 5)`` of every stage; a detector with one stage judges
            all of them with it.

    Returns:
        list: The logits ``(R, K+1)`` for every entry of ``rois``; the head's outputs for dense detectors.
    """
    if not is_two_stage(model):
        return [model.bbox_head(features)]
    head = model.roi_head
    if not isinstance(head.bbox_head, nn.ModuleList):
        return [head._bbox_forward(features, boxes)['cls_score'] for boxes in rois]
    return [head._bbox_forward(stage, features, boxes)['cls_score'] for stage, boxes in enumerate(rois)]


def probe(model: nn.Module, places: Mapping[str, Place], grad: bool = False) -> dict[str, list]:
    """Run a small blank image through a detector, in eval mode, and return what is seen at some places.

    Batch statistics and train modes stay as they are.

    Args:
        model: The detector.
        places: What to record, by name.
        grad: Whether what is seen shall be differentiable.
    """
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.set_grad_enabled(grad), Recorder(model, places) as recorder:
            features = model.extract_feat(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, device=device))
            if any(module.split('.')[0] in ('roi_head', 'bbox_head')
                   for place in places.values() for module in place.modules):
                box = torch.tensor([[0.0, 0.0, 0.0, _PROBE_SIZE / 2, _PROBE_SIZE / 2]], device=device)
                classify(model, features, [box] * len(classification_heads(model)))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: recorder[name] for name in places}
