"""What the benchmarks share: a clock that waits for the GPU, and the report of the figures."""
import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from ..cli import check_output
from ..errors import MMKDError


def now() -> float:
    """Return the time in seconds, when everything that was launched on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device: str) -> str:
    """Return the name of a device in reports."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else device


def run_benchmark(args: argparse.Namespace, measure: Callable[[argparse.Namespace], dict],
                  describe: Callable[[dict], list[str]]) -> None:
    """Measure, print the figures, and write them to ``args.json`` if it is set.

    Args:
        args: The arguments of the command, with ``json``.
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
