"""Export a student: its checkpoint without the parts that only distillation needs.

    mmkd export work_dirs/shake_faster_rcnn_r50/epoch_24.pth student.pth

The result contains the weights under the names of the stock model, the class names and the stock config.
"""
import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('checkpoint', help='a checkpoint of a distilling run')
    parser.add_argument('out', help='the file to write; must not exist')
