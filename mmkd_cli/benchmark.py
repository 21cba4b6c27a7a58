r"""Measure the time and the memory of a training step, and their lower bound.

    mmkd benchmark mmkd::detection/shake/shake_faster-rcnn_r101_r50_fpn_2x_coco.py --random-teacher
    mmkd benchmark mmkd::detection/shake/shake_faster-rcnn_r101_r50_fpn_2x_coco.py --random-teacher \
        --against mmkd::detection/kd/kd_faster-rcnn_r101_r50_fpn_2x_coco.py

The lower bound ("floor") is the sum of the student's step without distillation, the forward pass of the
teacher's backbone, neck and, where logits are needed, head, and the forward and backward pass of everything
else that is trained (a proxy, connectors). These parts are measured on the plain networks, in the same
process, alternating with the distilling step. The images are noise or, with --train-data, a batch of the
config's training data. All networks have the same student weights, which do not change because the learning
rate is 0, so they all process the same boxes. Times are medians; compare them only within one run. Memory is
the peak during a step above what was allocated before it (weights and optimizer states).

Every so many steps, the gradients of the methods are measured beside the task's (docs/balance.md). The
reported ratios to a step without measurements spread the cost over the intervals of GradientRatioHook.
"""
import argparse

from .arguments import add_benchmark_arguments, add_cfg_options, add_device, add_random_teacher, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_benchmark_arguments(parser, 'a distilling config',
                            'another distilling config with the same student, to compare')
    parser.add_argument('--size', type=at_least(1), default=256,
                        help='height and width of the images (default: %(default)s)')
    parser.add_argument('--batch', type=at_least(1), default=2, help='images per step (default: %(default)s)')
    parser.add_argument('--train-data', action='store_true',
                        help="measure on a batch of the config's training data, not on noise")
    parser.add_argument('--iters', type=at_least(1), default=20,
                        help='number of measurements of every part (default: %(default)s)')
    add_random_teacher(parser)
    add_device(parser)
    add_cfg_options(parser, 'change settings of the --against config only', '--against-options')
