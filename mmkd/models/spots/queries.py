"""What a query-based detector (the DETR family) is: how it is run, what it predicts, and by which layers."""
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from mmdet.models.detectors import DDQDETR, DINO, DetectionTransformer, GroundingDINO
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from ...errors import MMKDError
from .recorder import HookPoint


class Queries(NamedTuple):
    """What a query-based detector predicts for its queries.

    Layers are in the order of the forward pass; proposals of the encoder come first where they are recorded.

    Args:
        logits: Class logits ``(L, N, Q, K)``, with the background last in softmax heads.
        boxes: Boxes ``(L, N, Q, 4)`` as (center x, center y, width, height), relative to the image.
        weights: What the queries count, ``(L, N, Q)``: 1; 0 for queries that the detector discards (DDQ).
    """
    logits: Tensor
    boxes: Tensor
    weights: Tensor


def is_query_based(model: nn.Module) -> bool:
    """Return whether a detector predicts objects by queries to a transformer's decoder."""
    return isinstance(model, DetectionTransformer)


def check_query_based(model: Any, role: str) -> None:
    """Check that the predictions of a query-based detector can be compared with those of another.

    Args:
        model: The detector.
        role: The name of the network in messages, such as ``'student'``.

    Raises:
        MMKDError: If they cannot.
    """
    if isinstance(model, GroundingDINO):
        raise MMKDError(f'The {role} {type(model).__name__} classifies by the words of a text, so its logits '
                        'cannot be distilled; distill its image features instead, for instance with PKD at '
                        "the spot 'neck'.")
    if not class_branches(model):
        raise MMKDError(f"The {role}'s {type(model.bbox_head).__name__} does not classify the queries by a "
                        'linear layer per decoder layer, so its class logits cannot be distilled; distill '
                        'features instead, for instance with PKD.')


def class_branches(model: Any) -> list[str]:
    """Return the name of the layer that classifies the queries, for every decoder layer.

    Returns:
        list: Names of linear layers; several decoder layers may share one. Empty if it is not known.
    """
    number = model.decoder.num_layers
    if hasattr(model.bbox_head, 'fc_cls'):
        return ['bbox_head.fc_cls'] * number
    if hasattr(model.bbox_head, 'cls_branches'):
        shared = getattr(model.bbox_head, 'share_pred_layer', False)
        return [f'bbox_head.cls_branches.{0 if shared else layer}' for layer in range(number)]
    return []


def has_proposals(model: nn.Module) -> bool:
    """Return whether the encoder's proposals are predictions of classes whose order is that of the queries.

    Those of Deformable DETR are for no class, and DDQ reorders them.
    """
    return isinstance(model, DINO) and not isinstance(model, (DDQDETR, GroundingDINO))


def query_spots(model: Any) -> dict[str, HookPoint]:
    """Return the spots at the head and the decoder of a query-based detector; see ``NAMED_SPOTS``."""
    number = model.num_queries if isinstance(model, DINO) else None
    outputs = partial(head_outputs, number=number)
    heads: tuple[str, ...] = ('bbox_head', )
    if has_proposals(model):
        heads = (f'bbox_head.cls_branches.{model.decoder.num_layers}', 'bbox_head')
    return dict(
        cls_outputs=HookPoint(heads, transform=outputs),
        cls_logits=HookPoint('bbox_head', transform=partial(_matching_logits, number=number)),
        cls_inputs=HookPoint('bbox_head', 'input', transform=partial(_matching_states, number=number)),
        decoder_inputs=HookPoint('decoder', 'call', 1))


def run_transformer(model: Any, features: Sequence[Tensor], data_samples: Sequence) -> tuple:
    """Run the transformer and the head of a query-based detector.

    Args:
        model: The detector.
        features: The outputs of its neck.
        data_samples: The samples of the batch, with ``img_shape`` and ``batch_input_shape``; in train mode,
            DINO reads their objects as well.

    Returns:
        tuple: The head's outputs.

    Raises:
        MMKDError: If the transformer needs more than images.
    """
    if isinstance(model, GroundingDINO):
        raise MMKDError(f'The transformer of {type(model).__name__} needs a text; choose spots in its '
                        'backbone or neck.')
    inputs = model.forward_transformer(tuple(features), data_samples)
    return model.bbox_head(*[inputs[name] for name in ('hidden_states', 'references') if name in inputs])


def blank_samples(inputs: Tensor, image_shapes: Sequence[tuple[int, int]] | None = None) -> list:
    """Return samples without objects for a batch.

    Args:
        inputs: The batch ``(N, 3, H, W)``.
        image_shapes: ``(height, width)`` of every image inside its padding; by default, there is no padding.
    """
    size = tuple(inputs.shape[-2:])
    return [DetDataSample(metainfo=dict(img_shape=tuple(shape), batch_input_shape=size))
            for shape in image_shapes or [size] * len(inputs)]


def queries_of(outputs: Sequence) -> Queries:
    """Return the predictions that were recorded at ``cls_outputs``.

    Args:
        outputs: The recorded values: proposals of the encoder, if there are any, and the head's outputs.
    """
    *proposals, (logits, boxes, weights, *references) = outputs
    if proposals:
        ((scores, ), ) = proposals
        logits = torch.cat([scores[None], logits])
        boxes = torch.cat([references[0][None], boxes])
        weights = torch.cat([weights.new_ones(1, *weights.shape[1:]), weights])
    return Queries(logits, boxes, weights)


def classify_states(model: nn.Module, states: Tensor) -> Tensor:
    """Classify the decoder's states ``(L, N, Q, C)`` by the class branches of a detector.

    Returns:
        Tensor: The logits ``(L, N, Q, K)``.
    """
    branches = [model.get_submodule(name) for name in class_branches(model)]
    return torch.stack([branch(state) for branch, state in zip(branches, states, strict=True)])


def matching_queries(head: Any, values: Tensor, number: int | None) -> Tensor:
    """Leave out the queries of denoising groups, and DDQ's dense queries.

    Args:
        head: The head of the detector.
        values: Values for all queries, ``(..., Q', C)``.
        number: The number of other queries; ``None`` for detectors that have no others.

    Returns:
        Tensor: Shape ``(..., Q, C)``.
    """
    if number is None:
        return values
    start = values.shape[-2] - number
    if hasattr(head, 'cache_dict'):  # DDQ
        start, number = head.cache_dict['dis_query_info']
    return values[..., start:start + number, :]


def head_outputs(head: Any, args: tuple, output: Any, number: int | None) -> tuple[Tensor, ...]:
    """Return what is recorded at ``cls_outputs``; see :func:`queries_of`.

    Args:
        head: The head, or its class branch for the encoder's proposals.
        args: Its arguments.
        output: Its output.
        number: The number of queries, see :func:`matching_queries`.
    """
    if isinstance(output, Tensor):  # of the class branch for proposals; DINO selects them in this way
        best = output.amax(dim=-1).topk(number, dim=1).indices
        return (output.gather(1, best[..., None].expand(-1, -1, output.shape[-1])), )
    logits, boxes = (matching_queries(head, value, number) for value in output)
    weights = boxes.new_ones(boxes.shape[:-1])
    if hasattr(head, 'cache_dict'):
        for layer, mask in enumerate(head.cache_dict['distinct_query_mask'], 1):
            weights[layer] = mask[::head.cache_dict['num_heads'], 0].to(weights)
    if number is None:
        return logits, boxes, weights
    return logits, boxes, weights, matching_queries(head, args[1][0], number)


def _matching_logits(head: Any, args: tuple, output: Any, number: int | None) -> Tensor:
    return matching_queries(head, output[0], number)


def _matching_states(head: Any, args: tuple, number: int | None) -> tuple[Tensor]:
    return (matching_queries(head, args[0], number), )

