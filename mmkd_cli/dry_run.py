"""Try a distilling config without data: build it, take a few steps, and show the recorded spots.

mmkd dry-run mmkd::detection/shake/shake_faster-rcnn_r101_r50_fpn_2x_coco.py --random-teacher --size 256
"""
import argparse

from .arguments import add_cfg_options, add_device, add_random_teacher, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='a distilling config')
    parser.add_argument('--steps', type=at_least(1), default=2,
                        help='training steps to take (default: %(default)s)')
    parser.add_argument('--size', type=at_least(1), default=256,
                        help='height and width of the random images (default: %(default)s)')
    parser.add_argument('--batch', type=at_least(1), default=2, help='images per step (default: %(default)s)')
    add_random_teacher(parser)
    add_device(parser)
    add_cfg_options(parser)
