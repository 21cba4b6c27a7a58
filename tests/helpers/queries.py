"""Small query-based detectors of every family, made from MMDetection's own configs."""
import copy
import functools

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import ConfigDict
from mmengine.hub import get_config

CLASSES = 3

STOCK = dict(
    detr='detr/detr_r50_8xb2-150e_coco.py',
    conditional='conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    dab='dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    deformable='deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    refine='deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    two_stage='deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    dino='dino/dino-4scale_r50_8xb2-12e_coco.py',
    ddq='ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py')
_FIXED_WIDTH = ('conditional', 'two_stage')  # MMDetection's code for these assumes 256 channels


def query_detector(family: str, size: int = 8, queries: int = 12, layers: int = 2, classes: int = CLASSES,
                   width: int = 32) -> ConfigDict:
    """Return a model config that takes a step in a fraction of a second.

    Args:
        family: A key of ``STOCK``.
        size: Base channels of the backbone.
        queries: Number of queries.
        layers: Number of decoder layers.
        classes: Number of classes.
        width: Number of channels of the transformer, where it can be chosen.
    """
    model = copy.deepcopy(_stock(family))
    width = 256 if family in _FIXED_WIDTH else width
    model.backbone.update(depth=18, base_channels=size, frozen_stages=-1, norm_eval=False, init_cfg=None,
                          norm_cfg=dict(type='BN', requires_grad=True))
    stages = model.backbone.out_indices
    model.neck.update(in_channels=[size * 2**stage for stage in stages], out_channels=width)
    if model.neck.get('norm_cfg'):
        model.neck.norm_cfg.num_groups = 8
    model.num_queries = queries
    model.encoder.num_layers, model.decoder.num_layers = 1, layers
    for part in (model.encoder, model.decoder):
        for cfg in part.layer_cfg.values():
            if isinstance(cfg, dict) and 'embed_dims' in cfg:
                cfg.embed_dims = width
        part.layer_cfg.ffn_cfg.feedforward_channels = 32
    model.positional_encoding.num_feats = width // 2
    model.bbox_head.update(num_classes=classes, embed_dims=width)
    if 'dn_cfg' in model:
        model.dn_cfg.group_cfg.num_dn_queries = 10
    return model


@functools.cache
def _stock(family: str) -> ConfigDict:
    return get_config(f'mmdet::{STOCK[family]}').model


def query_batch(model, seed: int = 0) -> dict:
    """Return a preprocessed training batch of two images of different sizes."""
    torch.manual_seed(seed)
    data = demo_mm_inputs(2, [[3, 128, 128], [3, 100, 120]], num_classes=CLASSES, num_items=[2, 3])
    return model.data_preprocessor(data, True)
