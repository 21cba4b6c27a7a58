"""What the benchmarks share: a clock that waits for the GPU, and telling the figures."""
import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from mmkd.cli import check_output
from mmkd.errors import MMKDError


def now() -> float:
    """Return the time in seconds when all that was started is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def name_of(device: str) -> str:
    """Return the name that figures of a device are told with."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else device


def run_benchmark(args: argparse.Namespace, measure: Callable[[argparse.Namespace], dict],
                  describe: Callable[[dict], list[str]]) -> None:
    """Measure, print the figures, and write them to ``args.json`` if it is given.

    Raises:
        MMKDError: Before anything is measured, if that file cannot be written.
    """
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise MMKDError(f'The folder of --json {args.json!r} does not exist.')
    if args.json:
        check_output(args.json)
    MMLogger.get_instance('benchmark', log_level='WARNING')
    found = measure(args)
    for line in describe(found):
        print(line)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(found, file, indent=2)
