"""Running networks in part: as far as some points, a classification head alone, on a blank image."""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

try:
    from mmpretrain.models.backbones import ResNet_CIFAR
except ImportError:  # needed for classifiers only
    ResNet_CIFAR = ()

from ...errors import MMKDError
from .recorder import HookPoint, Recorder
from .resolve import classification_heads, is_classifier, is_two_stage

_DETECTOR_SIZE = 256  # large enough for a few points on the coarsest of the usual levels
_CLASSIFIER_SIZE = 224
_CIFAR_SIZE = 32


def record(model: nn.Module, points: Mapping[str, HookPoint], inputs: Tensor,
           rois: Sequence[Tensor] | None = None) -> dict[str, list]:
    """Run a network on a batch, no further than needed, and return what is seen at some points.

    Args:
        model: The network.
        points: What to record, by name.
        inputs: A preprocessed batch ``(N, 3, H, W)``.
        rois: Two-stage detectors: boxes to judge, see :func:`classify`.
    """
    with Recorder(model, points) as recorder:
        run(model, points, inputs, rois)
    return {name: recorder[name] for name in points}


def run(model: nn.Module, points: Mapping[str, HookPoint], inputs: Tensor,
        rois: Sequence[Tensor] | None = None) -> None:
    """Run a network on a batch, with its classification head only if a point is there; see :func:`record`."""
    if is_classifier(model) and not hasattr(model, 'backbone'):
        model(inputs)  # from another library; its parts go by other names
        return
    features = model.extract_feat(inputs)
    parts = {module.split('.')[0] for point in points.values() for module in point.modules}
    if parts & {'head', 'bbox_head', 'roi_head'}:
        classify(model, features, rois)


def classify(model: nn.Module, features: Sequence[Tensor], rois: Sequence[Tensor] | None = None) -> list:
    """Run a network's classification head.

    Args:
        model: The network.
        features: What its backbone and neck gave.
        rois: Two-stage detectors: the boxes ``(R, 5)`` of every stage; a detector with one stage judges
            all of them with it.

    Returns:
        list: The logits ``(R, K+1)`` for every entry of ``rois``; the head's outputs for dense detectors
        and classifiers.
    """
    if is_classifier(model):
        return [model.head(features)]
    if not is_two_stage(model):
        return [model.bbox_head(features)]
    head = model.roi_head
    if not isinstance(head.bbox_head, nn.ModuleList):
        return [head._bbox_forward(features, boxes)['cls_score'] for boxes in rois]
    return [head._bbox_forward(stage, features, boxes)['cls_score'] for stage, boxes in enumerate(rois)]


def classify_map(model: nn.Module, features: Tensor) -> Tensor:
    """Run what follows a classifier's backbone on the backbone's last map ``(N, C, H, W)``.

    Returns:
        Tensor: The logits ``(N, K)``.

    Raises:
        MMKDError: If the classifier has no such part.
    """
    if hasattr(model, 'backbone'):
        return model.head(model.neck((features, )) if model.with_neck else (features, ))
    if hasattr(getattr(model, 'model', None), 'forward_head'):  # timm
        return model.model.forward_head(features)
    raise MMKDError(f'A {type(model).__name__} has no head that can be run by itself.')


def probe(model: nn.Module, points: Mapping[str, HookPoint], grad: bool = False,
          size: tuple[int, int] | None = None) -> dict[str, list]:
    """Run a blank image through a network, in eval mode, and return what is seen at some points.

    Batch statistics and train modes stay as they are.

    Args:
        model: The network.
        points: What to record, by name.
        grad: Whether what is seen shall be differentiable.
        size: Height and width of the image; by default, one that the network can look at. To compare shapes
            of two networks, see :func:`common_probe_size`.
    """
    size = size or _own_size(model) or (_CLASSIFIER_SIZE, _CLASSIFIER_SIZE)
    inputs = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.set_grad_enabled(grad):
            rois = None
            if is_two_stage(model):
                rois = [inputs.new_tensor([[0.0, 0.0, 0.0, size[1] / 2, size[0] / 2]])]
                rois *= len(classification_heads(model))
            return record(model, points, inputs, rois)
    finally:
        for module, mode in modes.items():
            module.training = mode


def common_probe_size(*models: nn.Module) -> tuple[int, int] | None:
    """Return the height and width at which shapes of several networks can be compared.

    They are trained on the same images, but few classifiers know of which size: vision transformers and
    networks for CIFAR do. Those that know none are looked at in the size of those that do.

    Returns:
        tuple: For :func:`probe`; ``None`` if none of them knows, or they contradict one another, so that each
        has to be looked at in its own size.
    """
    known = {size for size in map(_own_size, models) if size is not None}
    return known.pop() if len(known) == 1 else None


def _own_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the height and width that a network is made for, if that can be known."""
    if not is_classifier(model):
        return _DETECTOR_SIZE, _DETECTOR_SIZE
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, ResNet_CIFAR):
        return _CIFAR_SIZE, _CIFAR_SIZE
    own = getattr(backbone, 'img_size', None)  # vision transformers, mmkd's networks for CIFAR
    of_timm = getattr(getattr(model, 'model', None), 'default_cfg', None)
    if own is None and of_timm:
        own = of_timm['input_size'][-2:]
    return (own, own) if isinstance(own, int) else own and tuple(own)
