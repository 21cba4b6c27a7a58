"""Convert a checkpoint of CRD's benchmark from RepDistiller's layout to MMPretrain's.

    python tools/model_converters/crd_to_mmpretrain.py ckpt_epoch_240.pth wrn_40_2.pth

The network is recognized by the names and shapes of its tensors; the result fits
configs/_base_/models/cifar/<network>.py.
"""
import argparse
import functools
import io
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmkd.checkpoints import load_checkpoint, write_atomic
from mmkd.cli import run_tool
from mmkd.errors import MMKDError, escaped, nearest_names

NETWORKS = {path.stem: path for path in sorted(
    (Path(__file__).resolve().parents[2] / 'configs/_base_/models/cifar').glob('*.py'))}
CLASSIFIERS = ('fc.', 'linear.', 'classifier.0.', 'classifier.')
COUNTER = 'num_batches_tracked'


def main() -> None:
    args = parse_args()
    network = args.network and args.network.lower()
    if network and network not in NETWORKS:
        raise MMKDError(f'The benchmark has no network {args.network!r}{nearest_names(network, NETWORKS)}.')
    if os.path.exists(args.out):
        raise MMKDError(f'{args.out!r} already exists; choose another name.')
    name, config, model = convert(args.checkpoint, network)
    buffer = io.BytesIO()
    torch.save(dict(meta=dict(cfg=config.pretty_text), state_dict=model.state_dict()), buffer)
    write_atomic(buffer.getvalue(), args.out)
    print(f'{args.out}: {name} with {model.head.num_classes} classes, {len(model.state_dict())} tensors')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help="a checkpoint in RepDistiller's layout")
    parser.add_argument('out', help='the file to write; must not exist')
    parser.add_argument('--network', metavar='NAME',
                        help=f'expect this network ({", ".join(NETWORKS)})')
    return parser.parse_args()


def convert(path: str, wanted: str | None = None) -> tuple[str, Config, nn.Module]:
    """Return the name, config and model of the network whose weights a file holds.

    Args:
        path: A checkpoint in the layout of RepDistiller.
        wanted: The only network to accept; by default, all networks of the benchmark.

    Raises:
        MMKDError: If the file cannot be read, or its tensors do not fit such a network.
    """
    weights = read_weights(path)
    originals = {rename(name): name for name in weights}
    saved = {name: tuple(weights[original].shape) for name, original in originals.items()}
    duplicates = [name for name in weights if originals[rename(name)] != name]
    classes = (saved.get('head.fc.weight') or (0, ))[0] or 100
    differing = {network: duplicates + difference(saved, shapes(network, classes)) for network in NETWORKS}
    fitting = [network for network, names in differing.items() if not names]
    nearest = wanted or min(differing, key=lambda network: len(differing[network]))
    if differing[nearest]:
        name = differing[nearest][0]
        raise MMKDError(
            f'The tensors in {path!r} are not those of {wanted or "any network in the benchmark"}: '
            + (f'they are those of {fitting[0]}.' if fitting else
               f'{len(differing[nearest])} differ from those of {nearest}, such as '
               f"'{escaped(originals.get(name, name))}'."))
    config, model = build(nearest, classes)
    counters = {name: value for name, value in model.state_dict().items() if name.endswith(COUNTER)}
    model.load_state_dict({**counters, **{rename(name): value for name, value in weights.items()}})
    return nearest, config, model


def read_weights(path: str) -> dict[str, Tensor]:
    """Return the weights in a checkpoint, which are under ``model`` or ``state_dict``.

    Raises:
        MMKDError: If the checkpoint cannot be read, or holds no such weights.
    """
    weights = load_checkpoint(path)['state_dict']
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise MMKDError(f'The weights in the checkpoint {path!r} are not a dict of tensors.')
    return {str(name).removeprefix('module.'): value for name, value in weights.items()}


def rename(name: str) -> str:
    """Return MMPretrain's name of a tensor that RepDistiller calls ``name``."""
    for prefix in CLASSIFIERS:
        if name.startswith(prefix):
            return 'head.fc.' + name.removeprefix(prefix)
    return 'backbone.' + name.replace('.shortcut.', '.downsample.')


def build(network: str, classes: int) -> tuple[Config, nn.Module]:
    """Build a network of the benchmark for a number of classes."""
    config = Config.fromfile(NETWORKS[network])
    config.model.head.num_classes = classes
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return config, MODELS.build(config.model)


@functools.cache
def shapes(network: str, classes: int) -> dict[str, tuple]:
    """Return the shapes of a network's tensors by name."""
    return {name: tuple(value.shape) for name, value in build(network, classes)[1].state_dict().items()}


def difference(saved: dict[str, tuple], expected: dict[str, tuple]) -> list[str]:
    """Return the names of tensors that differ in presence or shape; batch counters may be absent."""
    return sorted(name for name in {*saved, *expected} if saved.get(name) != expected.get(name)
                  and (name in saved or not name.endswith(COUNTER)))


if __name__ == '__main__':
    run_tool(main)
