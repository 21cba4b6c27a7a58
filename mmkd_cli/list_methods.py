"""List all distillation methods: which networks they are for, an example config, and their papers.

mmkd list
mmkd list --task detector
"""
import argparse

TASKS = ('classifier', 'two-stage', 'dense', 'query-based', 'detector')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('--task', choices=TASKS, help='list only the methods for these networks')
