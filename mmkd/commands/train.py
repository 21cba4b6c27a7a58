"""Training of detectors and classifiers: ``mmkd train``."""
import argparse
import os.path as osp

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ..apis import compose_distillation, prepare_config
from ..apis.config import check_annotation_files
from ..cli import check_training_config, merge_options, parse_options, read_config
from ..errors import MMKDError
from ..processes import check_launcher, init_processes
from ..work_dir import (
    claim_work_dir,
    disk_errors,
    raise_logging_errors,
    requested_checkpoint,
    resume_from,
)


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
    merge_options(cfg, parse_options(args.cfg_options))
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


def main(args: argparse.Namespace) -> None:
    """Run the command."""
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
