"""Measure how fast a config's training images come, ready for the network.

    python tools/analysis_tools/benchmark_loading.py CONFIG
    python tools/analysis_tools/benchmark_loading.py CONFIG --against OTHER_CONFIG --seconds 20

That is the train dataloader with its workers, which start anew every epoch as in mmkd's training, and the
student's data preprocessor on the training's device. No network runs beside it. Two configs take turns.
Images a second are medians over the turns; compare them only within one run.
"""
import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmkd.apis import prepare_config, student_config
from mmkd.apis.config import check_annotation_files, model_config
from mmkd.cli import (
    OptionsAction,
    check_training_config,
    merge_options,
    read_config,
    run_tool,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarking import name_of, now, run_benchmark

TURNS = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a training config, distilling or not')
    parser.add_argument('--against', metavar='CONFIG', help='another one, to measure beside it')
    parser.add_argument('--seconds', type=float, default=20,
                        help=f'how long each config is measured, in {TURNS} turns')
    parser.add_argument('--json', metavar='FILE', help='where to write the figures')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
                        help='change settings of both configs')
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict:
    """Return the images a second of each config, medians over turns, and their ratio."""
    streams = {name: Stream(*build(path, args.cfg_options))
               for name, path in (('config', args.config), ('against', args.against)) if path}
    rates = {name: [] for name in streams}
    for _ in range(TURNS):
        for name, stream in streams.items():
            rates[name].append(stream.measure(args.seconds / TURNS))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    found = dict(config=args.config, against=args.against, seconds=args.seconds,
                 device=name_of(get_device()),
                 threads=torch.get_num_threads(), images_per_second=medians)
    return dict(found, ratio=medians['config'] / medians['against']) if args.against else found


def build(path: str, cfg_options: dict | None) -> tuple[DataLoader, nn.Module]:
    """Build a config's train dataloader and its student's data preprocessor, as in training."""
    cfg = read_config(path)
    check_training_config(cfg, path)
    merge_options(cfg, cfg_options)
    check_annotation_files(cfg.train_dataloader, 'train_dataloader')
    cfg = prepare_config(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return Runner.build_dataloader(cfg.train_dataloader, seed=0), build_preprocessor(cfg)


def build_preprocessor(cfg: Config) -> nn.Module:
    """Build the student for its data preprocessor: classes of models have their own defaults."""
    return MODELS.build(model_config(student_config(cfg))).data_preprocessor.to(get_device())


class Stream:
    """The endless stream of a training's preprocessed batches.

    Args:
        loader: The train dataloader.
        preprocessor: The data preprocessor.
    """

    def __init__(self, loader: DataLoader, preprocessor: nn.Module) -> None:
        self.loader = loader
        self.preprocessor = preprocessor
        self.batches = self._batches()

    def measure(self, seconds: float) -> float:
        """Return how many images a second come, for as long as this."""
        # What workers prepared during others' turns is not counted.
        for _ in range(1 + self.loader.num_workers * (self.loader.prefetch_factor or 0)):
            next(self.batches)
        images, start = 0, now()
        while time.perf_counter() < start + seconds or not images:
            images += len(next(self.batches)['inputs'])
        return images / (now() - start)

    def _batches(self) -> Iterator[dict]:
        epoch = 0
        while True:
            for sampler in (self.loader.sampler, self.loader.batch_sampler.sampler):
                if hasattr(sampler, 'set_epoch'):
                    sampler.set_epoch(epoch)
            for batch in self.loader:
                yield self.preprocessor(batch, True)
            epoch += 1


def describe(found: dict) -> list[str]:
    """Return the figures as lines of text."""
    lines = [f'{found[name]}: {rate:.0f} images/s' for name, rate in found['images_per_second'].items()]
    if 'ratio' in found:
        lines.append(f'the first / the second: {found["ratio"]:.2f}')
    return lines


if __name__ == '__main__':
    run_tool(lambda: run_benchmark(parse_args(), measure, describe))
