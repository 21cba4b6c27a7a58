r"""Export the improved teacher that a proxy has become: SOKD's knowledge bridge, or a tuned teacher.

    python tools/model_converters/export_teacher.py \
        work_dirs/sokd_retinanet_r101_r50_fpn_2x_coco/epoch_24.pth improved_teacher.pth \
        --config configs/detection/sokd/sokd_retinanet_r101_r50_fpn_2x_coco.py

The result is an ordinary MMDetection or MMPretrain checkpoint that contains its config: the teacher, with the
trained part in place of the original part.
"""
import argparse
import io
import os

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmkd.apis import is_distillation
from mmkd.apis.config import model_config, teacher_configs
from mmkd.checkpoints import load_checkpoint, write_atomic
from mmkd.cli import check_output, read_config, run_tool
from mmkd.errors import MMKDError


def main() -> None:
    args = parse_args()
    if os.path.exists(args.out):
        raise MMKDError(f'{args.out!r} exists already; choose another name.')
    check_output(args.out)
    cfg = read_config(args.config)
    if not is_distillation(cfg):
        raise MMKDError(f'{args.config!r} does not distill.')
    if args.teacher_checkpoint:
        teachers = teacher_configs(cfg)
        if len(teachers) != 1:
            raise MMKDError(f'{args.config!r} has {len(teachers) or "no"} teachers; --teacher-checkpoint is '
                            'for configs with exactly one teacher.')
        teachers[0].checkpoint = args.teacher_checkpoint
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(model_config(cfg))
    checkpoint = load_checkpoint(args.checkpoint)
    weights = {name: value for name, value in checkpoint['state_dict'].items() if name.startswith('mmkd.')}
    expected = {name: value.shape for name, value in model.state_dict().items() if name.startswith('mmkd.')}
    saved = {name: getattr(value, 'shape', None) for name, value in weights.items()}
    if differing := [name for name in {*saved, *expected} if saved.get(name) != expected.get(name)]:
        raise MMKDError(f'{args.checkpoint!r} was not trained by {args.config!r}: '
                        f'{len(differing)} entries of the distillation differ.')
    model.load_state_dict(weights, strict=False)
    config, state = improved_teacher(model)
    meta = dict(cfg=config.pretty_text)
    if model.mmkd.teacher.class_mapping.is_identity:
        meta['dataset_meta'] = (checkpoint.get('meta') or {}).get('dataset_meta')
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=state), buffer)
    write_atomic(buffer.getvalue(), args.out)
    print(f'{args.out}: {len(state)} tensors of a {config.model.type}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a checkpoint of a distilling run')
    parser.add_argument('out', help='the file to write; must not exist')
    parser.add_argument('--config', required=True, help='the config that the checkpoint was trained with')
    parser.add_argument('--teacher-checkpoint',
                        help="the teacher's weights (default: those that the config names)")
    return parser.parse_args()


def improved_teacher(model) -> tuple[Config, dict[str, Tensor]]:
    """Return config and weights of the teacher that the only exportable proxy of a distillation has become.

    Args:
        model: The distilled student.

    Raises:
        MMKDError: If there is not exactly one proxy that can be exported.
    """
    proxies = [proxy for method in model.mmkd.methods.values() for proxy in getattr(method, 'proxies', [])]
    exportable = [proxy for proxy in proxies if proxy.export_obstacle is None]
    if len(exportable) == 1:
        return exportable[0].export()
    obstacles = [f' {type(proxy).__name__} cannot be exported: {proxy.export_obstacle}.' for proxy in proxies
                 if proxy.export_obstacle is not None]
    raise MMKDError(f'There are {len(exportable)} proxies in this distillation that can be exported as a '
                    f'teacher; exactly one is needed.{"".join(obstacles)}')


if __name__ == '__main__':
    run_tool(main)
