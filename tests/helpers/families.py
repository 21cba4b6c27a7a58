"""Small detectors of every family, made from MMDetection's own configs."""
import copy
import functools

from mmengine.config import ConfigDict
from mmengine.hub import get_config

STOCK = dict(
    faster_rcnn='faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    cascade_rcnn='cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    mask_rcnn='mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    retinanet='retinanet/retinanet_r50_fpn_1x_coco.py',
    fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    atss='atss/atss_r50_fpn_1x_coco.py',
    gfl='gfl/gfl_r50_fpn_1x_coco.py',
    rtmdet='rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    yolox='yolox/yolox_tiny_8xb8-300e_coco.py')
TWO_STAGE = ('faster_rcnn', 'cascade_rcnn', 'mask_rcnn')
CLASSES = 3
CHANNELS = 32

PROXY_METHODS = {
    'kd': dict(type='mmkd.KD'),
    'kdtuned': dict(type='mmkd.KDTuned'),
    'kdtuned_head': dict(type='mmkd.KDTuned', trainable='head'),
    'kdtuned_adapter': dict(type='mmkd.KDTuned', trainable='adapter'),
    'dml': dict(type='mmkd.DML'),
    'shake': dict(type='mmkd.SHAKE'),
    'shake_teacher': dict(type='mmkd.SHAKE', placement='teacher'),
    'shake_alone': dict(type='mmkd.SHAKE', placement='alone'),
    'sokd': dict(type='mmkd.SOKD'),
}
"""The methods of class logits, with every kind of proxy."""


def detector(family: str, size: int = 8, classes: int = CLASSES) -> ConfigDict:
    """Return a model config that takes a step in a fraction of a second.

    Args:
        family: A key of ``STOCK``.
        size: Base channels of the backbone; a teacher's may differ from a student's.
        classes: Number of classes.
    """
    model = copy.deepcopy(_stock(family))
    if family in ('rtmdet', 'yolox'):
        _shrink_csp(model, size)
    else:
        model.backbone.update(type='ResNet', depth=18, base_channels=size, frozen_stages=-1, style='pytorch',
                              norm_cfg=dict(type='BN', requires_grad=True), norm_eval=False, init_cfg=None)
        model.neck.update(in_channels=[size, 2 * size, 4 * size, 8 * size], out_channels=CHANNELS)
    for norm_cfg in _all_values(model, 'norm_cfg'):
        if norm_cfg.get('type') == 'SyncBN':
            norm_cfg.type = 'BN'  # the same on one device, and it runs on CPU
    if family in TWO_STAGE:
        _shrink_two_stage(model, classes)
    else:
        head = dict(num_classes=classes, in_channels=CHANNELS, feat_channels=CHANNELS)
        if 'stacked_convs' in model.bbox_head:
            head['stacked_convs'] = 2
        model.bbox_head.update(head)
    return model


@functools.cache
def _stock(family: str) -> ConfigDict:
    return get_config(f'mmdet::{STOCK[family]}').model  # reads all metafiles of MMDetection each time


def _all_values(node, key: str):
    """Yield all dicts under a key, anywhere in a config."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict) and isinstance(node.get(key), dict):
        yield node[key]
    for child in children:
        yield from _all_values(child, key)


def _shrink_csp(model: ConfigDict, size: int) -> None:
    factor = size / 64
    model.backbone.update(deepen_factor=0.167, widen_factor=factor, init_cfg=None)
    model.neck.update(in_channels=[4 * size, 8 * size, 16 * size], out_channels=CHANNELS, num_csp_blocks=1)
    model.data_preprocessor.batch_augments = None
    if model.type == 'RTMDet':
        model.use_syncbn = False  # in several processes it would ask for a GPU


def _shrink_two_stage(model: ConfigDict, classes: int) -> None:
    model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    model.roi_head.bbox_roi_extractor.out_channels = CHANNELS
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(in_channels=CHANNELS, fc_out_channels=32, num_classes=classes)
    if 'mask_head' in model.roi_head:
        model.roi_head.mask_roi_extractor.out_channels = CHANNELS
        model.roi_head.mask_head.update(in_channels=CHANNELS, conv_out_channels=CHANNELS, num_convs=1,
                                        num_classes=classes)
    stages = model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 32
    model.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=100)


CLASSIFIERS = dict(
    two_stage=('shared_fcs', 'fc_cls'),
    retinanet=('cls_convs', 'retina_cls'),
    fcos=('cls_convs', 'conv_cls'),
    atss=('cls_convs', 'atss_cls'),
    gfl=('cls_convs', 'gfl_cls'),
    rtmdet=('cls_convs', 'rtm_cls'),
    yolox=('multi_level_cls_convs', 'multi_level_conv_cls', 'multi_level_reg_convs', 'multi_level_conv_obj'))
"""The parts of each family's head that its class logits come through."""


def classifier_parts(family: str) -> tuple[str, ...]:
    return CLASSIFIERS['two_stage' if family in TWO_STAGE else family]
