"""Arguments that several commands share."""
import argparse
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers of at least ``least``."""

    def number(text: str) -> int:
        if not text.lstrip('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a whole number of at least {least}, not {text!r}')
        return int(text)

    return number


def add_cfg_options(parser: argparse.ArgumentParser, text: str = 'override settings of the config',
                    option: str = '--cfg-options') -> None:
    """Add an option for settings of a config; ``mmkd.cli.parse_options`` parses its words."""
    parser.add_argument(option, nargs='+', action='extend', default=[], metavar='KEY=VALUE', help=text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share with MMDetection's tools."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    add_cfg_options(parser, 'override settings of the config, for instance model.student.backbone.depth=18')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='job launcher')
    parser.add_argument('--processes', type=at_least(1), metavar='N',
                        help='start N processes on this machine, one for each GPU (without GPUs, on the CPU)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option for a device; ``mmkd.cli.device`` checks it and has the default."""
    parser.add_argument('--device', help='device of the networks (default: cuda if there is a GPU, else cpu)')


def add_random_teacher(parser: argparse.ArgumentParser) -> None:
    """Add the option to do without weights."""
    parser.add_argument('--random-teacher', action='store_true',
                        help="do not load the weights of the teacher and of the student's backbone")


def add_benchmark_arguments(parser: argparse.ArgumentParser, config: str, against: str) -> None:
    """Add the arguments that all benchmarks share.

    Args:
        parser: The parser.
        config: Help of the config.
        against: Help of the config that is measured beside it.
    """
    parser.add_argument('config', help=config)
    parser.add_argument('--against', metavar='CONFIG', help=against)
    parser.add_argument('--json', metavar='FILE', help='where to write the figures')
    add_cfg_options(parser, 'change settings of both configs')


def add_comparison_arguments(parser: argparse.ArgumentParser, seeds: int | str, jobs: int | str) -> None:
    """Add the options that all commands for comparisons share.

    Args:
        parser: The parser.
        seeds: Default number of seeds; text describes a default that the command sets itself.
        jobs: Default number of trainings at a time; text as for ``seeds``.
    """
    for option, default, text in (
            ('--seeds', seeds, 'train every method with N seeds; more seeds give a spread and an interval'),
            ('--jobs', jobs, 'how many trainings run at a time and share the cores')):
        parser.add_argument(option, type=at_least(1), metavar='N', help=f'{text} (default: {default})',
                            default=default if isinstance(default, int) else None)
    parser.add_argument('--data', type=lambda text: Path(text).resolve(), metavar='FOLDER',
                        help='folder of the digits, which are drawn if missing (default: data/digits_det, '
                        'data/digits_cls)')
    parser.add_argument('--smoke', action='store_true',
                        help='make a tiny run that only proves that the pipeline works')
