"""A teacher with trained classification heads in place of its former ones."""
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ...errors import MMKDError
from ..spots import classification_heads, is_classifier, is_two_stage
from ..teachers import Teacher


def replace_heads(config: Config, weights: dict[str, Tensor], teacher: Teacher,
                  heads: Sequence[nn.Module]) -> None:
    """Make a teacher classify with other heads, and predict the same boxes.

    Where classes and boxes of a two-stage detector share layers, they get separate layers: the trained ones,
    and the teacher's.

    Args:
        config: A copy of the teacher's config, to be changed.
        weights: A copy of the teacher's weights, to be changed.
        teacher: The teacher.
        heads: Trained copies of its classification heads, without box branches.

    Raises:
        MMKDError: If the teacher's boxes depend on layers of the heads.
    """
    trained = [head.state_dict() for head in heads]
    if is_two_stage(teacher.model):
        _separate_towers(config, weights, teacher.model, trained)
    else:
        prefix = 'head' if is_classifier(teacher.model) else 'bbox_head'
        weights.update({f'{prefix}.{name}': value for name, value in trained[0].items()})
    if not is_classifier(teacher.model):
        _check_boxes(config, weights, teacher)


def _separate_towers(config: Config, weights: dict[str, Tensor], model: Any,
                     trained: Sequence[Mapping[str, Tensor]]) -> None:
    """Give class scores and boxes separate towers: the trained tower, and the teacher's."""
    cfgs = config.model.roi_head.bbox_head
    is_cascade = isinstance(model.roi_head.bbox_head, nn.ModuleList)
    cfgs = cfgs if isinstance(cfgs, list) else [copy.deepcopy(cfgs) for _ in trained]
    heads: list[Any] = classification_heads(model)
    for stage, (cfg, head, trained_weights) in enumerate(zip(cfgs, heads, trained, strict=True)):
        if not hasattr(head, 'num_shared_fcs'):
            raise MMKDError(f'{type(head).__name__} cannot have separate towers for classes and boxes, so '
                            'its boxes would suffer from a trained classifier.')
        prefix = f'roi_head.bbox_head.{stage}.' if is_cascade else 'roi_head.bbox_head.'
        cfg.update(
            type='ConvFCBBoxHead',
            num_cls_convs=head.num_shared_convs + head.num_cls_convs,
            num_cls_fcs=head.num_shared_fcs + head.num_cls_fcs,
            num_reg_convs=head.num_shared_convs + head.num_reg_convs,
            num_reg_fcs=head.num_shared_fcs + head.num_reg_fcs,
            num_shared_convs=0,
            num_shared_fcs=0,
            conv_out_channels=head.conv_out_channels,
            fc_out_channels=head.fc_out_channels)
        former = {name: weights.pop(prefix + name)
                  for name in [name.removeprefix(prefix) for name in weights if name.startswith(prefix)]}
        weights.update({prefix + _separate_name(name, 'reg', head): value for name, value in former.items()
                        if not name.startswith(('fc_cls', 'cls_'))})
        weights.update({prefix + _separate_name(name, 'cls', head): value
                        for name, value in trained_weights.items()})
    config.model.roi_head.bbox_head = cfgs if is_cascade else cfgs[0]


def _separate_name(name: str, branch: str, head: Any) -> str:
    """Return the name that a layer of the shared tower, or of a branch above it, has in a separate tower."""
    kind, *rest = name.split('.')
    num_shared = dict(convs=head.num_shared_convs, fcs=head.num_shared_fcs)
    if kind.startswith('shared_'):
        return '.'.join([kind.replace('shared', branch), *rest])
    if kind in (f'{branch}_convs', f'{branch}_fcs'):
        return '.'.join([kind, str(int(rest[0]) + num_shared[kind.split('_')[1]]), *rest[1:]])
    return name


def _check_boxes(config: Config, weights: Mapping[str, Tensor], teacher: Teacher) -> None:
    """Check that the improved teacher predicts the same boxes as the teacher, for the same proposals."""
    cfg = ConfigDict(copy.deepcopy(config.model))
    cfg.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(teacher.scope):
        improved = MMENGINE_MODELS.build(cfg)
    improved.load_state_dict(weights)
    improved.eval()
    images = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = teacher.model.extract_feat(images)
        boxes, improved_boxes = _boxes(teacher.model, features), _boxes(improved, features)
    if not all(torch.equal(before, after) for before, after in zip(boxes, improved_boxes, strict=True)):
        raise MMKDError(f'The boxes of the {type(teacher.model).__name__} (or their centerness) are computed '
                        'by layers that were trained for classes, so they would suffer; not exported.')


def _boxes(model: Any, features: Sequence[Tensor]) -> list[Tensor]:
    """Return all outputs of a detector's heads that are not class scores."""
    if not is_two_stage(model):
        return [level for levels in model.bbox_head(features)[1:] for level in levels]
    rois = torch.tensor([[0.0, 10.0, 10.0, 128.0, 128.0]])
    if not isinstance(model.roi_head.bbox_head, nn.ModuleList):
        return [model.roi_head._bbox_forward(features, rois)['bbox_pred']]
    return [model.roi_head._bbox_forward(stage, features, rois)['bbox_pred']
            for stage in range(len(model.roi_head.bbox_head))]
