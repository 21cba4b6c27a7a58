"""Train a detector or a classifier, with or without distillation.

python tools/train.py configs/shake_faster_rcnn_r50.py
python tools/train.py STOCK_CONFIG --distill shake --teacher TEACHER_CONFIG --teacher-checkpoint T.pth
python tools/train.py configs/cifar/resnet32x4_resnet8x4.py --distill shake
"""
import argparse
import os.path as osp

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd.apis import compose_distillation, prepare_config
from mmkd.apis.config import check_annotation_files
from mmkd.cli import add_common_arguments, check_training_config, merge_options, read_config, run_tool
from mmkd.errors import MMKDError
from mmkd.processes import check_launcher, init_processes
from mmkd.work_dir import (
    claim_work_dir,
    disk_errors,
    raise_logging_errors,
    requested_checkpoint,
    resume_from,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config of mmkd, or any config of MMDetection or MMPretrain')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='resume from CHECKPOINT, by default the latest one in the work directory')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate to the total batch size')
    parser.add_argument('--distill', nargs='+', metavar='METHOD',
                        help='distill a stock config with one or more methods, such as shake '
                        '(tools/misc/list_methods.py lists them; change their settings with --cfg-options '
                        'model.methods.METHOD.SETTING=…)')
    parser.add_argument('--teacher', metavar='CONFIG',
                        help="the teacher's config, with --distill (default: the teacher that CONFIG names)")
    parser.add_argument('--teacher-checkpoint', metavar='FILE',
                        help="the teacher's weights, with --distill ('random' for an untrained teacher)")
    add_common_arguments(parser)
    return parser.parse_args()


def compose(args: argparse.Namespace) -> Config:
    """Return the whole config for the arguments."""
    cfg = read_config(args.config)
    check_training_config(cfg, args.config)
    if args.distill:
        if not args.teacher and not cfg.get('teacher') and [name.lower() for name in args.distill] != ['dml']:
            raise MMKDError('--distill needs --teacher CONFIG and --teacher-checkpoint FILE.')
        compose_distillation(cfg, args.distill, args.teacher, args.teacher_checkpoint)
    elif args.teacher or args.teacher_checkpoint:
        raise MMKDError('--teacher and --teacher-checkpoint require --distill METHOD; in a distilling '
                        'config, set model.teacher.config and model.teacher.checkpoint.')
    merge_options(cfg, args.cfg_options)
    if args.amp:
        if not torch.cuda.is_available():
            raise MMKDError("--amp needs a GPU: MMEngine's AmpOptimWrapper does not run on CPU.")
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise MMKDError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config.')
        cfg.auto_scale_lr.enable = True
    cfg.launcher = args.launcher
    default = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or default
    check_annotation_files(cfg.train_dataloader, 'train_dataloader')
    check_annotation_files(cfg.get('val_dataloader'), 'val_dataloader')
    check_annotation_files(cfg.get('val_evaluator'), 'val_evaluator')
    return prepare_config(cfg, distributed=args.launcher != 'none')


def main() -> None:
    args = parse_args()
    check_launcher(args.launcher)
    cfg = compose(args)
    resume = requested_checkpoint(cfg, args.resume)
    init_processes(args.launcher, cfg.get('env_cfg'))
    lock, checkpoint = claim_work_dir(cfg.work_dir, resume)
    resume_from(cfg, checkpoint, resume)
    with disk_errors(cfg.work_dir):
        runner = Runner.from_cfg(cfg)
        raise_logging_errors(runner.logger)
        runner.train()
    if lock is not None:
        lock.release()


if __name__ == '__main__':
    run_tool(main)
