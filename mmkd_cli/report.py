"""Print the tables of comparisons that 'mmkd compare' has finished or interrupted.

mmkd report work_dirs/compare_methods
"""
import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('work_dirs', nargs='+', type=Path, metavar='WORK_DIR',
                        help='output folder of a comparison')
