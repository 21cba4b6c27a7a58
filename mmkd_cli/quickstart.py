"""See distillation work in minutes: a teacher, a student alone, and the same student with several methods.

Draws a dataset of digits, trains and evaluates everything, prints a table, and writes comparison.md,
comparison.json, curves.png and, for detectors, detections.png into the work directory. Detectors are
distilled with KD and SHAKE; classifiers with KD, SOKD and SHAKE, and 3 seeds. Run the same command again to
continue after an interruption; finished trainings are not repeated.
"""
import argparse
from pathlib import Path

from .arguments import add_comparison_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('--task', choices=('detection', 'classification'), default='detection',
                        help='detectors or classifiers (default: %(default)s)')
    add_comparison_arguments(parser, seeds='1, for classifiers 3', jobs='1, for classifiers all cores')
    parser.add_argument('--work-dir', type=Path, metavar='FOLDER',
                        help='output folder (default: work_dirs/quickstart or '
                        'work_dirs/quickstart_classification)')
