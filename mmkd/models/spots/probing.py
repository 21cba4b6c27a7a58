"""Running parts of networks: up to some points, a classification head alone, on a blank image."""
from collections.abc import Mapping, Sequence

import torch
from mmpretrain.models.backbones import ResNet_CIFAR
from torch import Tensor, nn

from ...errors import MMKDError
from .queries import blank_samples, is_query_based, run_transformer
from .recorder import HookPoint, Recorder
from .resolve import classification_heads, is_classifier, is_two_stage

_DETECTOR_SIZE = 256  # large enough for a few positions on the coarsest of the usual levels
_CLASSIFIER_SIZE = 224
_CIFAR_SIZE = 32


def record(model: nn.Module, points: Mapping[str, HookPoint], inputs: Tensor,
           rois: Sequence[Tensor] | None = None, data_samples: Sequence | None = None) -> dict[str, list]:
    """Run a network on a batch, no further than needed, and return what is recorded at some points.

    Args:
        model: The network.
        points: The points to record, by name.
        inputs: A preprocessed batch ``(N, 3, H, W)``.
        rois: Two-stage detectors: the boxes to classify, see :func:`classify`.
        data_samples: Query-based detectors: the samples of the batch, see :func:`run`.

    Returns:
        dict: By name, the list of recorded values.
    """
    with Recorder(model, points) as recorder:
        run(model, points, inputs, rois, data_samples)
    return {name: recorder[name] for name in points}


def run(model: nn.Module, points: Mapping[str, HookPoint], inputs: Tensor,
        rois: Sequence[Tensor] | None = None, data_samples: Sequence | None = None) -> None:
    """Run a network on a batch, all that follows the neck only if one of the points is there.

    Args:
        model: The network.
        points: The points that are recorded, by name.
        inputs: A preprocessed batch ``(N, 3, H, W)``.
        rois: Two-stage detectors: the boxes to classify, see :func:`classify`.
        data_samples: Query-based detectors: the samples of the batch, see
            :func:`~mmkd.models.spots.queries.run_transformer`; by default, images without padding.
    """
    if is_classifier(model) and not hasattr(model, 'backbone'):
        model(inputs)  # a network of another library, whose parts have other names
        return
    features = model.extract_feat(inputs)
    parts = {module.split('.')[0] for point in points.values() for module in point.modules}
    if is_query_based(model):
        if parts - {'backbone', 'neck'}:
            run_transformer(model, features, data_samples or blank_samples(inputs))
    elif parts & {'head', 'bbox_head', 'roi_head'}:
        classify(model, features, rois)


def classify(model: nn.Module, features: Sequence[Tensor], rois: Sequence[Tensor] | None = None) -> list:
    """Run the classification head of a network.

    Args:
        model: The network.
        features: The outputs of its backbone and neck.
        rois: Two-stage detectors: the boxes ``(R, 5)`` as (image, x1, y1, x2, y2) of every cascade stage; a
            detector with a single stage classifies all of them with it.

    Returns:
        list: The logits ``(R, K+1)`` for every entry of ``rois``; the head's outputs for dense detectors
        and classifiers.
    """
    if is_classifier(model):
        return [model.head(features)]
    if not is_two_stage(model):
        return [model.bbox_head(features)]
    head = model.roi_head
    if rois is None:
        raise ValueError(f'{type(model).__name__} needs boxes to classify.')
    if not isinstance(head.bbox_head, nn.ModuleList):
        return [head._bbox_forward(features, boxes)['cls_score'] for boxes in rois]
    return [head._bbox_forward(stage, features, boxes)['cls_score'] for stage, boxes in enumerate(rois)]


def classify_map(model: nn.Module, features: Tensor) -> Tensor:
    """Run the layers that follow a classifier's backbone on the last feature map ``(N, C, H, W)``.

    Returns:
        Tensor: The logits ``(N, K)``.

    Raises:
        MMKDError: If the classifier has no layers that can be run separately.
    """
    if hasattr(model, 'backbone'):
        return model.head(model.neck((features, )) if model.with_neck else (features, ))
    if hasattr(getattr(model, 'model', None), 'forward_head'):  # timm
        return model.model.forward_head(features)
    raise MMKDError(f'{type(model).__name__} has no head that can be run by itself.')


def probe(model: nn.Module, points: Mapping[str, HookPoint], grad: bool = False,
          size: tuple[int, int] | None = None) -> dict[str, list]:
    """Run a network in eval mode on a blank image, and return what is recorded at some points.

    Batch statistics and train modes stay as they are.

    Args:
        model: The network.
        points: The points to record, by name.
        grad: Whether to compute the recorded values with gradient.
        size: Height and width of the image in pixels; by default, a size that suits the network. To compare
            the shapes of two networks, see :func:`common_probe_size`.

    Returns:
        dict: By name, the list of recorded values.
    """
    size = size or _input_size(model) or (_CLASSIFIER_SIZE, _CLASSIFIER_SIZE)
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
    """Return the image size at which the shapes of several networks can be compared.

    The networks are trained on the same images, but only some classifiers define the size of these, such as
    vision transformers and networks for CIFAR. All other networks are run at that size.

    Returns:
        tuple: Height and width in pixels, for :func:`probe`; ``None`` if no network defines a size, or two of
        them define different sizes, so that each has to be run at its default size.
    """
    sizes = {size for size in map(_input_size, models) if size is not None}
    return sizes.pop() if len(sizes) == 1 else None


def _input_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the image height and width that a network is made for, if it defines one."""
    if not is_classifier(model):
        return _DETECTOR_SIZE, _DETECTOR_SIZE
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, ResNet_CIFAR):
        return _CIFAR_SIZE, _CIFAR_SIZE
    size = getattr(backbone, 'img_size', None)  # vision transformers, and mmkd's networks for CIFAR
    timm_cfg = getattr(getattr(model, 'model', None), 'default_cfg', None)
    if size is None and timm_cfg:
        size = timm_cfg['input_size'][-2:]
    if isinstance(size, int):
        return size, size
    return tuple(size) if size else None
