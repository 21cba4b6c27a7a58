"""What the benchmarks share: a clock that waits for the GPU, and the report of the figures."""
import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from ..cli import OptionsAction, check_output
from ..errors import MMKDError


def now() -> float:
    """Return the time in seconds, when everything that was launched on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device: str) -> str:
    """Return the name of a device in reports."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else device


def benchmark_parser(description: str | None, config: str, against: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks share.

    Args:
        description: What the benchmark measures.
        config: Help of the config.
        against: Help of the config that is measured beside it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help=config)
    parser.add_argument('--against', metavar='CONFIG', help=against)
    parser.add_argument('--json', metavar='FILE', help='where to write the figures')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
                        help='change settings of both configs')
    return parser


def run_benchmark(args: argparse.Namespace, measure: Callable[[argparse.Namespace], dict],
                  describe: Callable[[dict], list[str]]) -> None:
    """Measure, print the figures, and write them to ``args.json`` if it is set.

    Args:
        args: Arguments of :func:`benchmark_parser`.
        measure: Returns the figures.
        describe: Returns the figures as lines of text.

    Raises:
        MMKDError: If the file cannot be written; before anything is measured.
    """
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise MMKDError(f'The folder of --json {args.json!r} does not exist.')
    if args.json:
        check_output(args.json)
    MMLogger.get_instance('benchmark', log_level='WARNING')
    figures = measure(args)
    for line in describe(figures):
        print(line)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(figures, file, indent=2)
