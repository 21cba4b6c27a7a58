"""Backbones in parts that run one by one: a stem, stages, and what follows the last of them."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

try:
    from mmpretrain.models import backbones
    from mmpretrain.models.utils import resize_pos_embed
except ImportError:  # needed for classifiers only
    backbones = None

from ...errors import MMKDError


@dataclass(frozen=True)
class Split:
    """The parts of a backbone, which together compute its last output:

    .. code-block:: python

        x = parts.stem(images)
        for name, stage in parts.stages:
            x = stage(x)
        output = parts.tail(x)[-1]  # backbone(images)[-1]

    The parts look up the backbone's parameters when they are called, so :func:`torch.func.functional_call`
    can replace them.

    Args:
        stem: Maps images ``(N, 3, H, W)`` to what the first stage takes.
        stages: In order: the name of a submodule, and a function that maps what the stage before gives to
            what that submodule gives: a map ``(N, C, H', W')``; of a vision transformer, tokens
            ``(N, L, C)``; of a Swin transformer, the pair of tokens and their height and width.
        tail: Maps what the last stage gives to a tuple of one, the backbone's last output.
    """

    stem: Callable[[Tensor], Any]
    stages: tuple[tuple[str, Callable[[Any], Any]], ...]
    tail: Callable[[Any], tuple]


def split(backbone: nn.Module) -> Split:
    """Split a backbone into its parts.

    The stages are those of the architecture; of a vision transformer, its blocks; of VGG, the layers up to
    each max pooling; of MobileNetV2 and V3, the layers of one resolution, H/4 to H/32, as in a ResNet: those
    of H/2 belong to the stem.

    Args:
        backbone: One of mmkd's or MMPretrain's.

    Raises:
        MMKDError: If it is of another kind, or its last output does not come from its last layer.
    """
    if all(hasattr(backbone, part) for part in ('stem', 'stages', 'tail')):
        return _staged(backbone)
    for kind, (family, steps) in FAMILIES.items():
        # A subclass with a forward pass of its own may call the same modules in another way.
        if backbones and type(backbone).forward is getattr(backbones, kind).forward:
            parts = family(backbone)
            _check_last(backbone, len(getattr(backbone, steps)))
            return parts
    raise MMKDError(
        f'The backbone {type(backbone).__name__} cannot be run stage by stage: MMPretrain\'s '
        f'{", ".join(FAMILIES)} can, and those that share their forward pass, and any backbone with the '
        'methods stem(), stages() and tail() of mmkd.models.backbones.Staged.')


def _staged(backbone: nn.Module) -> Split:
    stages = tuple(backbone.stages())
    if hasattr(backbone, 'out_indices'):
        _check_last(backbone, len(stages) + getattr(backbone, 'has_tail', False))
    return Split(backbone.stem, stages, lambda x: (backbone.tail(x), ))


def _resnet(backbone: nn.Module) -> Split:
    stem = ['stem'] if backbone.deep_stem else ['conv1', backbone.norm1_name, 'relu']
    stem += ['maxpool'] * hasattr(backbone, 'maxpool')
    return _chained(backbone, stem, [[name] for name in backbone.res_layers])


def _vgg(backbone: nn.Module) -> Split:
    if backbone.num_classes > 0:
        raise MMKDError(f'VGG with num_classes={backbone.num_classes} ends with its own classifier and is '
                        'not run stage by stage; leave num_classes out, and classify with a neck and a head.')
    return _chained(backbone, [], [[f'{backbone.module_name}.{index}' for index in range(start, end)]
                                   for start, end in backbone.range_sub_modules])


def _mobilenet(backbone: nn.Module) -> Split:
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


def _shufflenet(backbone: nn.Module) -> Split:
    names = [f'layers.{index}' for index in range(len(backbone.layers))]
    number = len(backbone.stage_blocks)  # in V2 a convolution follows
    return _chained(backbone, ['conv1', 'maxpool'], [[name] for name in names[:number]], names[number:])


def _convnext(backbone: nn.Module) -> Split:
    def tail(x: Tensor) -> Tensor:
        norm = getattr(backbone, f'norm{len(backbone.stages) - 1}')
        return norm(x.mean([-2, -1], keepdim=True)).flatten(1) if backbone.gap_before_final_norm else norm(x)

    stem, *others = ([f'downsample_layers.{index}', f'stages.{index}']
                     for index in range(len(backbone.stages)))
    return _chained(backbone, stem[:1], [stem[1:], *others], [tail])


def _vision_transformer(backbone: nn.Module) -> Split:
    def stem(images: Tensor) -> Tensor:
        tokens, grid = backbone.patch_embed(images)
        # Only tokens pass between the parts, so that tail cannot know another grid.
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


def _swin(backbone: nn.Module) -> Split:
    def stem(images: Tensor) -> tuple:
        tokens, grid = backbone.patch_embed(images)
        if backbone.use_abs_pos_embed:
            tokens = tokens + _positions(backbone, backbone.absolute_pos_embed, grid)
        return backbone.drop_after_pos(tokens), grid

    def stage(index: int, given: tuple) -> tuple:
        if isinstance(backbone, backbones.SwinTransformerV2):
            return backbone.stages[index](*given)
        after = backbone.out_after_downsample  # by default the next stage starts with the downsampling
        before = backbone.stages[index - 1].downsample if index and not after else None
        return backbone.stages[index](*(before(*given) if before else given), do_downsample=after)

    def tail(given: tuple) -> tuple[Tensor]:
        tokens, grid = given
        tokens = getattr(backbone, f'norm{len(backbone.stages) - 1}')(tokens)
        return (tokens.unflatten(1, grid).permute(0, 3, 1, 2).contiguous(), )

    stages = ((f'stages.{index}', partial(stage, index)) for index in range(len(backbone.stages)))
    return Split(stem, tuple(stages), tail)


def _check_last(backbone: nn.Module, outputs: int) -> None:
    if outputs - 1 not in backbone.out_indices:
        raise MMKDError(f'{type(backbone).__name__} with out_indices={tuple(backbone.out_indices)} leaves '
                        f'out its last layer; to be run stage by stage, it needs {outputs - 1} among them.')


def _positions(backbone: nn.Module, embedding: Tensor, grid: Sequence[int]) -> Tensor:
    return resize_pos_embed(embedding, backbone.patch_resolution, grid, backbone.interpolate_mode,
                            backbone.num_extra_tokens)


def _chained(backbone: nn.Module, stem: list, stages: list[list], tail: Sequence = ()) -> Split:
    """Of parts that are steps one after another: names of submodules, or functions."""
    def run(steps: Sequence, x: Any) -> Any:
        for step in steps:
            x = backbone.get_submodule(step)(x) if isinstance(step, str) else step(x)
        return x

    return Split(partial(run, stem), tuple((steps[-1], partial(run, steps)) for steps in stages),
                 lambda x: (run(tail, x), ))


FAMILIES = dict(
    ResNet=(_resnet, 'res_layers'), ResNet_CIFAR=(_resnet, 'res_layers'), RegNet=(_resnet, 'res_layers'),
    VGG=(_vgg, 'stage_blocks'), MobileNetV2=(_mobilenet, 'layers'), MobileNetV3=(_mobilenet, 'layers'),
    ShuffleNetV1=(_shufflenet, 'layers'), ShuffleNetV2=(_shufflenet, 'layers'),
    ConvNeXt=(_convnext, 'stages'), VisionTransformer=(_vision_transformer, 'layers'),
    DistilledVisionTransformer=(_vision_transformer, 'layers'),
    SwinTransformer=(_swin, 'stages'), SwinTransformerV2=(_swin, 'stages'))
"""Class in ``mmpretrain.models.backbones``: what splits its forward pass, and what ``out_indices`` counts."""
