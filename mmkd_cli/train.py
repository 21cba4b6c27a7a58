"""Train a detector or a classifier, with or without distillation.

mmkd train mmkd::detection/shake/shake_faster-rcnn_r101_r50_fpn_2x_coco.py
mmkd train STOCK_CONFIG --distill shake --teacher TEACHER_CONFIG --teacher-checkpoint T.pth
mmkd train mmkd::cifar/resnet32x4_resnet8x4.py --distill shake
"""
import argparse

from .arguments import add_run_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='a config of mmkd, or any config of MMDetection or MMPretrain')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='resume from CHECKPOINT, by default the latest one in the work directory')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate to the total batch size')
    parser.add_argument('--distill', nargs='+', metavar='METHOD',
                        help="distill a stock config with one or more methods, such as shake ('mmkd list' "
                        'lists them; change their settings with --cfg-options '
                        'model.methods.METHOD.SETTING=…)')
    parser.add_argument('--teacher', metavar='CONFIG',
                        help="the teacher's config, with --distill (default: the teacher that CONFIG names)")
    parser.add_argument('--teacher-checkpoint', metavar='FILE',
                        help="the teacher's weights, with --distill ('random' for an untrained teacher)")
    add_run_arguments(parser)
