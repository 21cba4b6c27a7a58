"""Try a distilling config without data: build it, take a few steps, and show the recorded spots.

python tools/misc/dry_run.py configs/shake_faster_rcnn_r50.py --random-teacher --size 256
"""
import argparse
import time
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from mmkd.cli import OptionsAction, at_least, device, run_tool
from mmkd.errors import MMKDError
from mmkd.experiments.trial import build, load, random_batch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a distilling config')
    parser.add_argument('--steps', type=at_least(1), default=2,
                        help='training steps to take (default: %(default)s)')
    parser.add_argument('--size', type=at_least(1), default=256,
                        help='height and width of the random images (default: %(default)s)')
    parser.add_argument('--batch', type=at_least(1), default=2, help='images per step (default: %(default)s)')
    parser.add_argument('--random-teacher', action='store_true',
                        help="do not load the weights of the teacher and of the student's backbone")
    parser.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='device of the networks (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
                        help='override settings of the config')
    return parser.parse_args()


def describe(value: Any) -> str:
    """Return the shapes of the values recorded at a spot."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, (tuple, list)):
        return ', '.join(describe(item) for item in value)
    return type(value).__name__


def main() -> None:
    args = parse_args()
    # Otherwise the initialization of every parameter is logged.
    MMLogger.get_instance('dry_run', log_level='WARNING')
    cfg = load(args.config, args.cfg_options, args.random_teacher)
    model = build(cfg, args.device)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    student = sum(p.numel() for name, p in model.named_parameters() if not name.startswith('mmkd.'))
    extra = sum(p.numel() for p in model.mmkd.parameters())
    print(f'student: {type(model).__name__}, {student / 1e6:.2f} M parameters')
    for teacher in model.mmkd.teachers:
        print(f'teacher: {teacher.describe()}')
    print(f'methods: {", ".join(model.mmkd.methods)}, {extra / 1e6:.2f} M additional parameters')

    data = random_batch(model, args.batch, args.size)
    for step in range(args.steps):
        start = time.perf_counter()
        losses = model.train_step(data, optimizer)
        seconds = time.perf_counter() - start
        print(f'step {step + 1}: {seconds:.2f} s')
        for name, value in losses.items():
            print(f'    {name:36s} {value.item():.4f}')
            if 'loss' in name and not torch.isfinite(value):
                raise MMKDError(f'{name} is {value.item()} in step {step + 1}.')
    with torch.no_grad(), model.mmkd.recorder(model) as recorder:
        batch = model.data_preprocessor(data, True)
        model.loss(batch['inputs'], batch['data_samples'])
    for spot in model.mmkd.student_spots:
        print(f'spot {spot!r}: {describe(recorder[spot])}')


if __name__ == '__main__':
    run_tool(main)
