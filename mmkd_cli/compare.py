r"""Compare methods: a student alone, and the same student with each of several methods.

A PAIR is the training config of a student, detector or classifier, that names its teacher's config
(teacher=dict(config=...)). Trains the teacher and all students of every pair, with the same initialization,
batches, updates and learning rate for all methods, and prints a table. The table is also written to
comparison.md, and all figures to comparison.json, in the output folder, after every training, as far as it is
finished. Run the same command again to continue after an interruption, or to repeat trainings that failed;
finished trainings are not repeated.

    mmkd compare
    mmkd compare --seeds 10 --report-only
    mmkd compare mmkd::cifar/resnet32x4_resnet8x4_cifar10.py --seeds 2 \
        --cfg-options train_cfg.max_epochs=60 param_scheduler.milestones=[37,45,52]
"""
import argparse
from pathlib import Path

from .arguments import add_cfg_options, add_comparison_arguments

PAIRS = ('mmkd::examples/digits/faster_rcnn_student.py', 'mmkd::examples/digits/retinanet_student.py')
METHODS = ('student', 'kd', 'kdtuned', 'dml', 'sokd', 'shake_student', 'shake_teacher', 'shake_alone')
"""What is compared by default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('pairs', nargs='*', default=list(PAIRS), metavar='PAIR',
                        help=f'training configs of students (default: {" ".join(PAIRS)})')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), metavar='METHOD',
                        help=f'{", ".join(METHODS)} (default: all of these), any other method that '
                        "'mmkd list' lists, with settings as in sakd:method=AT, or several "
                        'methods joined by +; the student alone is always included')
    add_comparison_arguments(parser, seeds=3, jobs=1)
    parser.add_argument('--first-seed', type=int, default=0, metavar='SEED',
                        help='first seed of the students (default: 0); the teacher has seed 0')
    add_cfg_options(parser, 'change settings of all trainings, teachers included')
    parser.add_argument('--report-only', action='store_true',
                        help='report what is finished, without training anything')
    parser.add_argument('--out', type=Path, metavar='FOLDER',
                        help='output folder (default: work_dirs/compare_methods)')
