r"""Compute a teacher's class logits for the training images once, for all epochs and students.

    mmkd cache mmkd::examples/quickstart/classifier_student.py --views 4
    mmkd train mmkd::examples/quickstart/classifier_student.py --distill kd \
        --cfg-options model.teacher.cache=work_dirs/teacher_caches/classifier_student

An interrupted run continues with the first view that is missing. The teacher gets exactly the inputs that it
would get in training; the random augmentation is drawn once for every view.
"""
import argparse

from .arguments import add_cfg_options, add_device, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('config', help='a config that distills a classifier or names a `teacher` for it')
    parser.add_argument('--out', metavar='DIR',
                        help='output folder (default: work_dirs/teacher_caches/CONFIG)')
    parser.add_argument('--views', type=at_least(1), metavar='V',
                        help='number of views of every image (default: the views of the dataset, or 1)')
    parser.add_argument('--top-k', type=int, default=0, metavar='K',
                        help='keep the K largest logits of every image, and the total probability of the '
                        'others (default: 0, which keeps all logits)')
    parser.add_argument('--batch-size', type=at_least(1), metavar='B',
                        help='batch size (default: the batch size of the training)')
    parser.add_argument('--workers', type=at_least(0), metavar='W',
                        help='data loading workers (default: the workers of the training)')
    add_device(parser)
    add_cfg_options(parser)
