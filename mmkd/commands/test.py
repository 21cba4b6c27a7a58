"""Evaluation of a student: ``mmkd test``."""
import argparse
import os.path as osp

from mmengine.config import ConfigDict
from mmengine.runner import Runner

from ..apis import compose_distillation, student_config
from ..apis.config import check_annotation_files, set_model_wrapper, trains_classifier
from ..checkpoints import load_checkpoint, student_state_dict
from ..cli import check_folder, check_output, merge_options, parse_options, read_config
from ..engine.runner_access import unwrapped
from ..errors import MMKDError
from ..models.teachers.building import load_strictly
from ..processes import check_launcher, init_processes


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    check_launcher(args.launcher)
    cfg = read_config(args.config)
    merge_options(cfg, parse_options(args.cfg_options))
    if 'model' not in cfg or 'test_dataloader' not in cfg:
        raise MMKDError(f'{args.config!r} has no model or no test_dataloader.')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise MMKDError(f'--out writes a pickle file, whose name ends with .pkl, not {args.out!r}.')
    if bool(args.teacher) != bool(args.teacher_checkpoint):
        raise MMKDError('--teacher CONFIG and --teacher-checkpoint FILE require each other.')
    if args.out:
        check_output(args.out)
    cfg = student_config(cfg)
    is_classifier = trains_classifier(cfg)
    if args.teacher:
        # KD adds no parameters, so the student's weights are still all weights of the model.
        compose_distillation(cfg, 'kd', args.teacher, args.teacher_checkpoint)
        cfg.default_hooks.teacher_gap = ConfigDict(type='mmkd.TeacherGapHook')
    check_annotation_files(cfg.test_dataloader, 'test_dataloader')
    check_annotation_files(cfg.get('test_evaluator'), 'test_evaluator')
    cfg.launcher = args.launcher
    default = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or default
    check_folder(cfg.work_dir, 'work directory')
    cfg.load_from, cfg.resume = None, False
    if args.out:
        evaluators = cfg.test_evaluator
        evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
        kind = 'DumpResults' if is_classifier else 'DumpDetResults'
        cfg.test_evaluator = [*evaluators, ConfigDict(type=kind, out_file_path=args.out)]
    if args.show_dir:
        cfg.default_hooks.visualization = ConfigDict(
            type='VisualizationHook', enable=True, interval=1,
            out_dir=osp.join(cfg.work_dir, args.show_dir)) if is_classifier else ConfigDict(
                type='DetVisualizationHook', draw=True, test_out_dir=args.show_dir)
    # Before the checkpoint is loaded, because one process may download it for all.
    init_processes(args.launcher, cfg.get('env_cfg'))
    checkpoint = load_checkpoint(args.checkpoint)
    set_model_wrapper(cfg, args.launcher != 'none')
    runner = Runner.from_cfg(cfg)
    load_strictly(unwrapped(runner), student_state_dict(checkpoint), f'checkpoint {args.checkpoint!r}')
    runner.test()
