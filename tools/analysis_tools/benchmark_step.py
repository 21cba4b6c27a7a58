"""Measure what a training step costs, against the least that it can cost.

    python tools/analysis_tools/benchmark_step.py configs/shake_faster_rcnn_r50.py --random-teacher
    python tools/analysis_tools/benchmark_step.py configs/shake_faster_rcnn_r50.py --random-teacher \\
        --against configs/kd_faster_rcnn_r50.py

The least is the student's own step, plus the teacher's forward pass as far as it is asked for; both are
measured on the plain networks, in the same process, taking turns with the distilling step. Images are noise.
Seconds are medians; compare them only within one run.
"""
import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from mmkd.apis import student_config
from mmkd.apis.launching import run_tool
from mmkd.models.spots import classify

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from misc.dry_run import build, load, random_batch  # noqa: E402


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('benchmark', log_level='WARNING')
    found = measure(args)
    for line in describe(found):
        print(line)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(found, file, indent=2)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a distilling config')
    parser.add_argument('--against', metavar='CONFIG',
                        help='another distilling config of the same student, to measure beside it')
    parser.add_argument('--size', type=int, default=256, help='height and width of the images')
    parser.add_argument('--batch', type=int, default=2, help='images a step')
    parser.add_argument('--iters', type=int, default=20, help='how often everything is measured')
    parser.add_argument('--random-teacher', action='store_true',
                        help="do not look for the teacher's and the backbone's weights")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', metavar='FILE', help='where to write the figures')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='change settings of both configs')
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict:
    """Return the medians of all parts in seconds, their ratios, and on GPUs the peak memory in bytes."""
    configs = {name: load(path, args.cfg_options, args.random_teacher)
               for name, path in (('distill', args.config), ('against', args.against)) if path}
    models = {name: build(cfg, args.device) for name, cfg in configs.items()}
    alone = student_config(configs['distill'])
    data = random_batch(models['distill'], args.batch, args.size)
    parts = dict(student=step_of(build(alone, args.device), alone, data),
                 teacher=teachers_forward(models['distill'], data),
                 **{name: step_of(model, configs[name], data) for name, model in models.items()})
    seconds, memory = take_turns(parts, args.iters, torch.device(args.device))
    floor = seconds['student'] + seconds['teacher']
    ratios = dict(floor=seconds['distill'] / floor, student=seconds['distill'] / seconds['student'])
    if args.against:
        ratios['against'] = seconds['distill'] / seconds['against']
    return dict(config=args.config, against=args.against, size=args.size, batch=args.batch, iters=args.iters,
                device=torch.cuda.get_device_name() if args.device == 'cuda' else args.device,
                threads=torch.get_num_threads(), seconds=dict(seconds, floor=floor), ratios=ratios,
                memory=memory)


def step_of(model, cfg: Config, data: dict) -> Callable[[], None]:
    """Return a training step: loss, backward, optimizer."""
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    return lambda: model.train_step(copy.deepcopy(data), optimizer)


def teachers_forward(model, data: dict) -> Callable[[], None]:
    """Return the teachers' forward pass as far as the methods ask for it, on the plain networks."""
    spots = model.mmkd.teacher_spots
    if not spots:
        return lambda: None
    batch = model.data_preprocessor(copy.deepcopy(data), True)
    rois = None
    if any(teacher.judges_rois(spots) for teacher in model.mmkd.teachers):
        with torch.no_grad(), model.mmkd.recorder(model) as recorder:
            model.loss(batch['inputs'], batch['data_samples'])
        rois = recorder['rois']
    inputs = [teacher.convert(batch['inputs'], batch['data_samples']) for teacher in model.mmkd.teachers]

    @torch.inference_mode()
    def forward():
        for teacher, images in zip(model.mmkd.teachers, inputs, strict=True):
            if not hasattr(teacher.model, 'backbone'):
                teacher.model(images)
                continue
            features = teacher.model.extract_feat(images)
            if any(spot.startswith('cls_') or 'head' in spot for spot in spots):
                classify(teacher.model, features, rois)

    return forward


def take_turns(parts: dict[str, Callable], iters: int, device: torch.device) -> tuple[dict, dict]:
    """Run all parts in turns; return the median seconds and, on GPUs, the peak memory of each."""
    seconds, memory = {name: [] for name in parts}, {}
    for turn in range(iters + 2):  # two to warm up
        for name, part in parts.items():
            if device.type == 'cuda':
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            part()
            if device.type == 'cuda':
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def describe(found: dict) -> list[str]:
    """Return the figures as lines of text."""
    titles = dict(student='student alone, its step', teacher="teacher's forward pass",
                  floor='floor: the two together', distill='distilling step',
                  against=f'step of {found["against"]}')
    lines = [f'{titles[name]:40s} {1000 * value:9.1f} ms' + (
        f'   peak {found["memory"][name] / 2**20:8.0f} MiB' if name in found['memory'] else '')
        for name, value in found['seconds'].items()]
    ratios = dict(floor='distilling step / floor', student='distilling step / student alone',
                  against='distilling step / the other one')
    return lines + [f'{ratios[name]:40s} {value:9.3f}' for name, value in found['ratios'].items()]


if __name__ == '__main__':
    run_tool(main)
