"""A few steps without data: ``mmkd dry-run``."""
import argparse
import time
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from ..cli import check_device, parse_options
from ..errors import MMKDError
from ..experiments.trial import build, load, random_batch


def describe(value: Any) -> str:
    """Return the shapes of the values recorded at a spot."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, (tuple, list)):
        return ', '.join(describe(item) for item in value)
    return type(value).__name__


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    # Otherwise the initialization of every parameter is logged.
    MMLogger.get_instance('dry_run', log_level='WARNING')
    cfg = load(args.config, parse_options(args.cfg_options), args.random_teacher)
    model = build(cfg, check_device(args.device))
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
