"""Write the improved teacher that SOKD's knowledge bridge (or a tuned teacher) has become.

    python tools/model_converters/export_teacher.py \
        work_dirs/sokd_retinanet_r101_r50_fpn_2x_coco/epoch_24.pth improved_teacher.pth \
        --config configs/detection/sokd/sokd_retinanet_r101_r50_fpn_2x_coco.py

The result is an ordinary MMDetection or MMPretrain checkpoint, with its config inside: the teacher's
weights, and the trained part in place of its own.
"""
import argparse
import copy
import io
import os

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

from mmkd.apis import is_distillation
from mmkd.apis.config import model_config, teacher_configs
from mmkd.checkpoints import load_checkpoint, write_atomic
from mmkd.cli import check_output, read_config, run_tool
from mmkd.errors import MMKDError
from mmkd.models.proxies import KnowledgeBridge, TunedTeacher
from mmkd.models.spots import classification_heads, is_classifier, is_two_stage


def main() -> None:
    args = parse_args()
    if os.path.exists(args.out):
        raise MMKDError(f'{args.out!r} exists already; choose another name.')
    check_output(args.out)
    cfg = read_config(args.config)
    if not is_distillation(cfg):
        raise MMKDError(f'{args.config!r} does not distil.')
    if args.teacher_checkpoint:
        teachers = teacher_configs(cfg)
        if len(teachers) != 1:
            raise MMKDError(f'{args.config!r} has {len(teachers) or "no"} teachers; --teacher-checkpoint is '
                            'for the one of a config.')
        teachers[0].checkpoint = args.teacher_checkpoint
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(model_config(cfg))
    loaded = load_checkpoint(args.checkpoint)
    weights = {name: value for name, value in loaded['state_dict'].items() if name.startswith('mmkd.')}
    own = {name for name in model.state_dict() if name.startswith('mmkd.')}
    if set(weights) != own:
        raise MMKDError(f'{args.checkpoint!r} was not trained by {args.config!r}: '
                        f'{len(own ^ set(weights))} entries of distillation differ.')
    model.load_state_dict(weights, strict=False)
    config, state = improved_teacher(model)
    meta = dict(cfg=config.pretty_text)
    if model.mmkd.teacher.class_mapping.is_identity:
        meta['dataset_meta'] = (loaded.get('meta') or {}).get('dataset_meta')
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=state), buffer)
    write_atomic(buffer.getvalue(), args.out)
    print(f'{args.out}: {len(state)} tensors of a {config.model.type}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a checkpoint of a distilling run')
    parser.add_argument('out', help='the file to write')
    parser.add_argument('--config', required=True, help='the config of that run')
    parser.add_argument('--teacher-checkpoint', help="the teacher's weights, if not those in the config")
    return parser.parse_args()


def improved_teacher(model) -> tuple[Config, dict]:
    """Return config and weights of the teacher with what was trained of it.

    Args:
        model: A student that distils by one knowledge bridge or tuned teacher.

    Raises:
        MMKDError: If no such part was trained, or the teacher's boxes would suffer from it.
    """
    found = [(proxy, teacher) for method in model.mmkd.methods.values()
             for proxy, teacher in zip(getattr(method, 'proxies', []), model.mmkd.teachers, strict=False)
             if isinstance(proxy, (KnowledgeBridge, TunedTeacher))]
    if len(found) != 1:
        raise MMKDError(f'There are {len(found)} knowledge bridges or tuned teachers in this run; one can '
                        'be written.')
    ((proxy, teacher), ) = found
    config = Config(copy.deepcopy(teacher.cfg.to_dict()))
    state = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    if hasattr(proxy, 'network'):
        return config, proxy.network.model.state_dict()
    if hasattr(proxy, 'tail'):
        return config, {**state, **proxy.tail.state_dict()}
    if hasattr(proxy, 'adapter') or getattr(proxy, 'last_stage', False):
        raise MMKDError('What was trained here is no part that the stock teacher has, or its boxes depend on '
                        'it; only classification heads and whole networks can be written.')
    heads = [head.state_dict() for head in proxy.heads]
    if is_classifier(teacher.model):
        return config, {**state, **{f'head.{name}': value for name, value in heads[0].items()}}
    if is_two_stage(teacher.model):
        _split_towers(config, state, teacher.model, heads)
    else:
        state.update({f'bbox_head.{name}': value for name, value in heads[0].items()})
    _check_boxes(config, state, teacher.model)
    return config, state


def _split_towers(config: Config, state: dict, teacher, heads: list[dict]) -> None:
    """Give class scores and boxes towers of their own: the trained one, and the teacher's."""
    cfgs = config.model.roi_head.bbox_head
    single = not isinstance(teacher.roi_head.bbox_head, torch.nn.ModuleList)
    cfgs = cfgs if isinstance(cfgs, list) else [copy.deepcopy(cfgs) for _ in heads]
    for stage, (cfg, own, trained) in enumerate(zip(cfgs, classification_heads(teacher), heads,
                                                    strict=True)):
        if not hasattr(own, 'num_shared_fcs'):
            raise MMKDError(f'{type(own).__name__} cannot have two towers, so its boxes would suffer from a '
                            'trained classifier.')
        prefix = 'roi_head.bbox_head.' if single else f'roi_head.bbox_head.{stage}.'
        cfg.update(
            type='ConvFCBBoxHead',
            num_cls_convs=own.num_shared_convs + own.num_cls_convs,
            num_cls_fcs=own.num_shared_fcs + own.num_cls_fcs,
            num_reg_convs=own.num_shared_convs + own.num_reg_convs,
            num_reg_fcs=own.num_shared_fcs + own.num_reg_fcs,
            num_shared_convs=0, num_shared_fcs=0,
            conv_out_channels=own.conv_out_channels, fc_out_channels=own.fc_out_channels)
        for name in [name for name in state if name.startswith(prefix)]:
            value, short = state.pop(name), name.removeprefix(prefix)
            state[prefix + _moved(short, 'reg', own)] = value
            if short.startswith('fc_cls') or short.startswith('cls_'):
                state.pop(prefix + _moved(short, 'reg', own))
        state.update({prefix + _moved(name, 'cls', own): value for name, value in trained.items()})
    config.model.roi_head.bbox_head = cfgs[0] if single else cfgs


def _moved(name: str, branch: str, head) -> str:
    """Return the name that a layer of the shared tower has in a tower of its own."""
    kind, *rest = name.split('.')
    shared = dict(convs=head.num_shared_convs, fcs=head.num_shared_fcs)
    if kind.startswith('shared_'):
        return '.'.join([kind.replace('shared', branch), *rest])
    if kind in (f'{branch}_convs', f'{branch}_fcs'):
        return '.'.join([kind, str(int(rest[0]) + shared[kind.split('_')[1]]), *rest[1:]])
    return name


def _check_boxes(config: Config, state: dict, teacher) -> None:
    """Check that the improved teacher gives the same boxes as the teacher, for the same proposals."""
    cfg = ConfigDict(copy.deepcopy(config.model))
    cfg.backbone.init_cfg = None
    improved = MODELS.build(cfg)
    improved.load_state_dict(state)
    improved.eval()
    size = 256
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        features = teacher.extract_feat(torch.randn(1, 3, size, size, generator=generator))
        if is_two_stage(teacher):
            rois = torch.tensor([[0.0, 10.0, 10.0, size / 2, size / 2]])
            single = not isinstance(teacher.roi_head.bbox_head, torch.nn.ModuleList)
            boxes = [[one.roi_head._bbox_forward(*([] if single else [stage]), features, rois)['bbox_pred']
                      for stage in range(len(classification_heads(teacher)))] for one in (teacher, improved)]
        else:
            boxes = [[level for levels in one.bbox_head(features)[1:] for level in levels]
                     for one in (teacher, improved)]
    if not all(torch.equal(mine, theirs) for mine, theirs in zip(*boxes, strict=True)):
        raise MMKDError(f'The boxes of the {type(teacher).__name__} (or their centerness) come out of the '
                        'tower that was trained for classes, so they would suffer; it cannot be written.')


if __name__ == '__main__':
    run_tool(main)
