"""Backbones in parts that run one after another: a stem, stages, and what follows the last stage."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmdet.models import backbones as mmdet_backbones
from mmpretrain.models.backbones import (
    VGG,
    ConvNeXt,
    DistilledVisionTransformer,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ResNet_CIFAR,
    ShuffleNetV1,
    ShuffleNetV2,
    SwinTransformer,
    SwinTransformerV2,
    VisionTransformer,
)
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from ...errors import MMKDError


@dataclass(frozen=True)
class Split:
    """The parts of a backbone, which together compute the backbone's last output.

    .. code-block:: python

        x = parts.stem(images)
        for name, stage in parts.stages:
            x = stage(x)
        output = parts.tail(x)[-1]  # backbone(images)[-1]

    The parts look up the backbone's parameters when they are called, so :func:`torch.func.functional_call`
    can replace them.

    Args:
        stem: Maps images ``(N, 3, H, W)`` to the input of the first stage.
        stages: In order: the name of a submodule, and a function that maps the output of the previous stage
            to the output of that submodule: a map ``(N, C, H', W')``; in a vision transformer, tokens
            ``(N, L, C)``; in a Swin transformer, the pair of tokens and their height and width.
        tail: Maps the output of the last stage to a tuple of length 1: the backbone's last output.
    """

    stem: Callable[[Tensor], Any]
    stages: tuple[tuple[str, Callable[[Any], Any]], ...]
    tail: Callable[[Any], tuple]


def split(backbone: nn.Module) -> Split:
    """Split a backbone into its parts.

    The stages are those of the architecture. Three families need a definition: a stage of a vision
    transformer is a block; a stage of VGG ends with a max pooling; a stage of MobileNetV2 and V3 consists of
    the layers of one resolution, from H/4 to H/32 as in a ResNet, and the layers of H/2 belong to the stem.

    Args:
        backbone: A backbone of mmkd, MMPretrain or MMDetection.

    Raises:
        MMKDError: If the backbone belongs to no known family, or its last output does not come from its last
            layer.
    """
    parts, num_outputs = _parts(backbone)
    out_indices = getattr(backbone, 'out_indices', None)
    if out_indices is not None and num_outputs - 1 not in out_indices:
        raise MMKDError(f'{type(backbone).__name__} with out_indices={tuple(out_indices)} leaves out its '
                        f'last layer; to be run stage by stage, it needs {num_outputs - 1} among them.')
    return parts


def stage_names(network: nn.Module) -> list[str]:
    """Return the names of the submodules whose outputs are the outputs of the stages, in order.

    In contrast to :func:`split`, the backbone does not need to return the output of its last layer.

    Args:
        network: A backbone of mmkd, MMPretrain or MMDetection, or a whole network of timm, which lists its
            stages itself.

    Returns:
        list: The names; none if it is not known what the stages are.
    """
    if hasattr(network, 'feature_info'):  # timm
        return [info['module'] for info in network.feature_info if info['reduction'] > 2]
    try:
        parts, _ = _parts(network)
    except MMKDError:
        return []
    return [name for name, _ in parts.stages]


def _parts(backbone: nn.Module) -> tuple[Split, int]:
    """Return the parts of a backbone, and how many outputs its ``out_indices`` can choose from."""
    if all(hasattr(backbone, part) for part in ('stem', 'stages', 'tail')):
        return _staged(backbone)
    for kinds, family, layers in FAMILIES:
        # A subclass that overrides `forward` may call the same modules in another way.
        if type(backbone).forward in [kind.forward for kind in kinds]:
            return family(backbone), len(getattr(backbone, layers))
    names = ', '.join(dict.fromkeys(kind.__name__ for kinds, *_ in FAMILIES for kind in kinds))
    raise MMKDError(
        f'The backbone {type(backbone).__name__} cannot be run stage by stage. These can: {names} of '
        'MMPretrain and MMDetection, their subclasses with the same forward pass, and any backbone with the '
        'methods stem(), stages() and tail() of mmkd.models.backbones.Staged.')


def _staged(backbone: Any) -> tuple[Split, int]:
    stages = tuple(backbone.stages())
    parts = Split(backbone.stem, stages, lambda x: (backbone.tail(x), ))
    return parts, len(stages) + getattr(backbone, 'has_tail', False)


def _resnet(backbone: ResNet) -> Split:
    stem = ['stem'] if backbone.deep_stem else ['conv1', backbone.norm1_name, 'relu']
    if hasattr(backbone, 'maxpool'):
        stem.append('maxpool')
    return _chained(backbone, stem, [[name] for name in backbone.res_layers])


def _vgg(backbone: VGG) -> Split:
    if backbone.num_classes > 0:
        raise MMKDError(f'VGG with num_classes={backbone.num_classes} ends with a classifier inside the '
                        'backbone and cannot be run stage by stage; leave num_classes out, and classify with '
                        'a neck and a head.')
    return _chained(backbone, [], [[f'{backbone.module_name}.{index}' for index in range(start, end)]
                                   for start, end in backbone.range_sub_modules])


def _mobilenet(backbone: MobileNetV2 | MobileNetV3) -> Split:
    layers, settings = backbone.layers, backbone.arch_settings
    if isinstance(settings, dict):  # MobileNetV3
        settings = settings[backbone.arch]
    else:
        layers = ['conv1', *layers]
    groups = [[layers[0]]]
    for name, (*_, stride) in zip(layers[1:-1], settings, strict=True):
        if stride == 2:
            groups.append([])
        groups[-1].append(name)
    return _chained(backbone, groups[0], groups[1:], layers[-1:])


def _shufflenet(backbone: ShuffleNetV1 | ShuffleNetV2) -> Split:
    names = [f'layers.{index}' for index in range(len(backbone.layers))]
    num_stages = len(backbone.stage_blocks)  # in V2 a convolution follows
    return _chained(backbone, ['conv1', 'maxpool'], [[name] for name in names[:num_stages]],
                    names[num_stages:])


def _convnext(backbone: ConvNeXt) -> Split:
    def tail(x: Tensor) -> Tensor:
        norm = getattr(backbone, f'norm{len(backbone.stages) - 1}')
        return norm(x.mean([-2, -1], keepdim=True)).flatten(1) if backbone.gap_before_final_norm else norm(x)

    stem, *later = ([f'downsample_layers.{index}', f'stages.{index}']
                     for index in range(len(backbone.stages)))
    return _chained(backbone, stem[:1], [stem[1:], *later], [tail])


def _vision_transformer(backbone: VisionTransformer | DistilledVisionTransformer) -> Split:
    def stem(images: Tensor) -> Tensor:
        tokens, grid = backbone.patch_embed(images)
        # Only tokens pass between the parts, so the tail cannot know a grid of another size.
        if backbone.out_type == 'featmap' and tuple(grid) != tuple(backbone.patch_resolution):
            raise MMKDError(f"{type(backbone).__name__} with out_type='featmap' can be run stage by stage on "
                            f'images of its img_size {tuple(backbone.img_size)} only, not of '
                            f'{tuple(images.shape[-2:])}.')
        for token in (getattr(backbone, 'dist_token', None), backbone.cls_token):
            if token is not None:
                tokens = torch.cat([token.expand(len(images), -1, -1), tokens], dim=1)
        tokens = backbone.drop_after_pos(tokens + _positions(backbone, backbone.pos_embed, grid))
        # DistilledVisionTransformer has this layer as well, but never calls it.
        return tokens if hasattr(backbone, 'dist_token') else backbone.pre_norm(tokens)

    def tail(tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        tokens = backbone.ln1(tokens) if backbone.final_norm else tokens
        return backbone._format_output(tokens, backbone.patch_resolution)

    names = [[f'layers.{index}'] for index in range(len(backbone.layers))]
    return _chained(backbone, [stem], names, [tail])


def _swin(backbone: SwinTransformer | SwinTransformerV2) -> Split:
    def stem(images: Tensor) -> tuple:
        tokens, grid = backbone.patch_embed(images)
        if backbone.use_abs_pos_embed:
            tokens = tokens + _positions(backbone, backbone.absolute_pos_embed, grid)
        return backbone.drop_after_pos(tokens), grid

    def stage(index: int, inputs: tuple) -> tuple:
        if isinstance(backbone, SwinTransformerV2):
            return backbone.stages[index](*inputs)
        after = backbone.out_after_downsample  # by default the next stage starts with the downsampling
        before = backbone.stages[index - 1].downsample if index and not after else None
        return backbone.stages[index](*(before(*inputs) if before else inputs), do_downsample=after)

    def tail(inputs: tuple) -> tuple[Tensor]:
        tokens, grid = inputs
        tokens = getattr(backbone, f'norm{len(backbone.stages) - 1}')(tokens)
        return (tokens.unflatten(1, grid).permute(0, 3, 1, 2).contiguous(), )

    stages = ((f'stages.{index}', partial(stage, index)) for index in range(len(backbone.stages)))
    return Split(stem, tuple(stages), tail)


def _positions(backbone: VisionTransformer | SwinTransformer, embedding: Tensor,
               grid: Sequence[int]) -> Tensor:
    return resize_pos_embed(embedding, backbone.patch_resolution, grid, backbone.interpolate_mode,
                            backbone.num_extra_tokens)


def _chained(backbone: nn.Module, stem: list, stages: list[list], tail: Sequence = ()) -> Split:
    """Return parts whose steps run one after another; a step is the name of a submodule or a function."""
    def run(steps: Sequence, x: Any) -> Any:
        for step in steps:
            x = backbone.get_submodule(step)(x) if isinstance(step, str) else step(x)
        return x

    return Split(partial(run, stem), tuple((steps[-1], partial(run, steps)) for steps in stages),
                 lambda x: (run(tail, x), ))


FAMILIES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any], Split], str], ...] = (
    ((ResNet, ResNet_CIFAR, RegNet, mmdet_backbones.ResNet, mmdet_backbones.RegNet,
      mmdet_backbones.DetectoRS_ResNet), _resnet, 'res_layers'),
    ((VGG, ), _vgg, 'stage_blocks'),
    ((MobileNetV2, MobileNetV3), _mobilenet, 'layers'),
    ((ShuffleNetV1, ShuffleNetV2), _shufflenet, 'layers'),
    ((ConvNeXt, ), _convnext, 'stages'),
    ((VisionTransformer, DistilledVisionTransformer), _vision_transformer, 'layers'),
    ((SwinTransformer, SwinTransformerV2), _swin, 'stages'))
"""Classes, the function that splits their forward pass, and the attribute that ``out_indices`` counts."""
