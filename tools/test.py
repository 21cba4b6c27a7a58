"""Evaluate a student's checkpoint. The teacher of a distilling config is not needed.

    python tools/test.py configs/shake_faster_rcnn_r50.py work_dirs/shake_faster_rcnn_r50/epoch_24.pth

With --teacher and --teacher-checkpoint, the gap between the student and that teacher is reported as well.
"""
import argparse
import os.path as osp

from mmengine.config import ConfigDict
from mmengine.runner import Runner

from mmkd.apis import compose_distillation, student_config
from mmkd.apis.config import check_annotation_files, set_model_wrapper, trains_classifier
from mmkd.checkpoints import load_checkpoint, student_state_dict
from mmkd.cli import add_common_arguments, check_folder, check_output, merge_options, read_config, run_tool
from mmkd.engine.runner_access import unwrapped
from mmkd.errors import MMKDError
from mmkd.models.teachers.building import load_strictly
from mmkd.processes import check_launcher, init_processes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the training config, or the config of the stock student')
    parser.add_argument('checkpoint', help="the student's checkpoint")
    parser.add_argument('--out', help='also write the predictions to this pickle file (.pkl)')
    parser.add_argument('--show-dir', help='also draw the predictions into this folder of the work directory')
    parser.add_argument('--teacher', metavar='CONFIG',
                        help='also report the gap between the class outputs of the student and this teacher')
    parser.add_argument('--teacher-checkpoint', metavar='FILE', help="the teacher's weights, with --teacher")
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_launcher(args.launcher)
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
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


if __name__ == '__main__':
    run_tool(main)
