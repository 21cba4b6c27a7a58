"""Evaluate a student's checkpoint. The teacher of a distilling config is not needed.

    mmkd test configs/shake_faster_rcnn_r50.py work_dirs/shake_faster_rcnn_r50/epoch_24.pth

With --teacher and --teacher-checkpoint, the gap between the student and that teacher is reported as well.
"""
import argparse

from .arguments import add_run_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='the training config, or the config of the stock student')
    parser.add_argument('checkpoint', help="the student's checkpoint")
    parser.add_argument('--out', help='also write the predictions to this pickle file (.pkl)')
    parser.add_argument('--show-dir', help='also draw the predictions into this folder of the work directory')
    parser.add_argument('--teacher', metavar='CONFIG',
                        help='also report the gap between the class outputs of the student and this teacher')
    parser.add_argument('--teacher-checkpoint', metavar='FILE', help="the teacher's weights, with --teacher")
    add_run_arguments(parser)
