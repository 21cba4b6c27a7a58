"""Measure how fast the training images of a config are loaded and preprocessed.

    python tools/analysis_tools/benchmark_loading.py CONFIG
    python tools/analysis_tools/benchmark_loading.py CONFIG --against OTHER_CONFIG --seconds 20

What is measured is the train dataloader with its workers, which are restarted in every epoch as in training
with mmkd, and the student's data preprocessor on the device of the training. No network is run. Two configs
are measured in alternation. Images per second are medians over these turns; compare them only within one run.
"""
import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmkd.apis import prepare_config, student_config
from mmkd.apis.config import check_annotation_files, model_config
from mmkd.cli import check_training_config, merge_options, parse_options, read_config, run_tool
from mmkd.experiments.benchmarking import device_name, now, run_benchmark
from mmkd_cli.arguments import add_benchmark_arguments

TURNS = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_benchmark_arguments(parser, 'a training config, distilling or not', 'another config to compare')
    parser.add_argument('--seconds', type=float, default=20,
                        help=f'how long each config is measured, in {TURNS} turns (default: %(default)s)')
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict:
    """Return the images per second of each config, medians over turns, and their ratio."""
    streams = {name: Stream(*build(path, parse_options(args.cfg_options)))
               for name, path in (('config', args.config), ('against', args.against)) if path}
    rates = {name: [] for name in streams}
    for _ in range(TURNS):
        for name, stream in streams.items():
            rates[name].append(stream.measure(args.seconds / TURNS))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    figures = dict(config=args.config, against=args.against, seconds=args.seconds,
                   device=device_name(get_device()), threads=torch.get_num_threads(),
                   images_per_second=medians)
    if args.against:
        figures['ratio'] = medians['config'] / medians['against']
    return figures


def build(path: str, cfg_options: dict) -> tuple[DataLoader, nn.Module]:
    """Build a config's train dataloader and its student's data preprocessor, as in training."""
    cfg = read_config(path)
    check_training_config(cfg, path)
    merge_options(cfg, cfg_options)
    check_annotation_files(cfg.train_dataloader, 'train_dataloader')
    cfg = prepare_config(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return Runner.build_dataloader(cfg.train_dataloader, seed=0), build_preprocessor(cfg)


def build_preprocessor(cfg: Config) -> nn.Module:
    """Build the student for its data preprocessor, whose defaults depend on the student's class."""
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
        """Measure for some seconds and return the number of images per second."""
        # What the workers prepared while the other config was measured is not counted.
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


def describe(figures: dict) -> list[str]:
    """Return the figures as lines of text."""
    lines = [f'{figures[name]}: {rate:.0f} images/s' for name, rate in figures['images_per_second'].items()]
    if 'ratio' in figures:
        lines.append(f'the first / the second: {figures["ratio"]:.2f}')
    return lines


if __name__ == '__main__':
    run_tool(lambda: run_benchmark(parse_args(), measure, describe))
