"""The time and the memory of a training step: ``mmkd benchmark``."""
import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from operator import methodcaller

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..apis import student_config
from ..apis.config import check_annotation_files
from ..checkpoints import student_state_dict
from ..cli import check_device, parse_options
from ..engine.hooks.gradient_ratio_hook import BALANCE_INTERVAL, GRADIENT_INTERVAL
from ..errors import MMKDError
from ..experiments.benchmarking import device_name, now, run_benchmark
from ..experiments.trial import build, load, random_batch
from ..models.nested import tensors_in
from ..models.spots import classify
from ..models.teachers import check_cache


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    args.device = check_device(args.device)
    args.cfg_options = parse_options(args.cfg_options)
    args.against_options = parse_options(args.against_options, '--against-options')
    run_benchmark(args, measure, describe)


def measure(args: argparse.Namespace) -> dict:
    """Return the medians of all parts in seconds, their ratios, and their peak memory in bytes."""
    options = args.cfg_options
    configs = dict(distill=load(args.config, options, args.random_teacher))
    if args.against:
        configs['against'] = load(args.against, {**options, **args.against_options}, args.random_teacher)
    if args.train_data:
        check_annotation_files(configs['distill'].train_dataloader, 'train_dataloader')
    models = {name: build(cfg, args.device) for name, cfg in configs.items()}
    if len({frozenset(shapes_of(model).items()) for model in models.values()}) > 1:
        raise MMKDError(f'--against must have the same student, and that of {args.against!r} has '
                        'different weights.')
    alone = student_config(configs['distill'])
    if args.train_data:
        data = first_batch(configs['distill'], models.values())
    else:
        data = random_batch(models['distill'], args.batch, args.size)
    if args.random_teacher:
        settle_norms(models, data)
    weights = student_state_dict(dict(state_dict=models['distill'].state_dict()))
    student = build(alone, args.device)
    student.load_state_dict(weights)
    if args.against:
        models['against'].load_state_dict(weights, strict=False)
    steps = {name: Step(model, configs[name], data) for name, model in models.items()}
    profiled = dict(student=Step(student, alone, data), distill=steps['distill'])
    parts: dict[str, Callable] = dict(
        student=profiled['student'], **teachers_forward(models['distill'], data), **steps,
        measured=with_measurement(steps['distill']), ended=after_the_end(steps['distill']))
    if proxy := trained_parts(models['distill'], data):
        parts['proxy'] = proxy
    device = torch.device(args.device)
    seconds = take_turns(parts, args.iters)
    seconds['floor'] = seconds['student'] + seconds['teacher'] + seconds.get('proxy', 0)
    ratios = dict(floor=seconds['distill'] / seconds['floor'],
                  student=seconds['distill'] / seconds['student'],
                  ended=seconds['ended'] / seconds['student'])
    if args.against:
        ratios['against'] = seconds['distill'] / seconds['against']
    extra = seconds['measured'] / seconds['distill'] - 1
    hook = configs['distill'].default_hooks.gradient_ratio
    ratios.update(gradient_ratios=1 + extra / hook.get('interval', GRADIENT_INTERVAL),
                  balance=1 + extra / hook.get('balance_interval', BALANCE_INTERVAL))
    if 'mmkd_teacher' in seconds:
        ratios['teacher'] = seconds['mmkd_teacher'] / seconds['teacher']
    return dict(config=args.config, against=args.against, cfg_options=args.cfg_options,
                against_options=args.against_options, train_data=args.train_data,
                size=list(data['inputs'][0].shape[-2:]), batch=len(data['inputs']), iters=args.iters,
                device=device_name(args.device), threads=torch.get_num_threads(), seconds=seconds,
                ratios=ratios,
                memory={name: peak_memory(part, device) for name, part in parts.items()},
                profile={name: step.profile(args.iters) for name, step in profiled.items()},
                loading=loading(configs['distill'], args.iters))


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a student's weights by name."""
    weights = student_state_dict(dict(state_dict=model.state_dict()))
    return {name: value.shape for name, value in weights.items()}


def first_batch(cfg: Config, models: Iterable[nn.Module]) -> dict:
    """Return the first batch of a config's training data, which must fit the teachers' caches."""
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    for model in models:
        for teacher in model.mmkd.teachers:
            if teacher.cache is not None:
                check_cache(teacher, model, cfg.train_dataloader.dataset, loader.dataset)
    return next(iter(loader))


def preprocessed(model: nn.Module, data: dict) -> dict:
    """Return a batch as the network takes it; ``data`` does not change."""
    return model.data_preprocessor(copy.deepcopy(data), True)


def settle_norms(models: Mapping[str, nn.Module], data: dict) -> None:
    """Give the batch norms of students and teachers with random weights the statistics of a batch.

    Otherwise frozen batch norms let activations fade, and a detector's boxes are just its anchors.
    """
    for model in models.values():
        batch = preprocessed(model, data)
        networks = [(model, batch['inputs'])] + [
            (teacher.model, teacher.convert(**batch)) for teacher in model.mmkd.teachers]
        for network, images in networks:
            training = network.training
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
                    module.reset_running_stats()
                    module.momentum = None  # a plain mean
            with torch.no_grad():
                network.extract_feat(images) if hasattr(network, 'backbone') else network(images)
            network.train(training)


class Step:
    """A training step: loss, backward, optimizer; no weight changes.

    Args:
        model: The network that is trained.
        cfg: Its config.
        data: A batch as a data loader gives it.
    """

    def __init__(self, model: nn.Module, cfg: Config, data: dict) -> None:
        self.model = model
        self.data = data
        self.optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
        for group in self.optimizer.param_groups:
            group['lr'] = 0.0

    def __call__(self) -> None:
        self.model.train_step(copy.deepcopy(self.data), self.optimizer)

    def profile(self, iters: int) -> dict[str, float]:
        """Return the median seconds of teachers, methods, backward, optimizer, and the rest, ``forward``.

        The GPU is synchronized after each part, so the parts add up to more than a plain step.
        """
        owners = dict(backward=[(self.optimizer, 'backward')], optimizer=[(self.optimizer, 'step')])
        if hasattr(self.model, 'mmkd'):
            owners['teacher'] = [(teacher.inference, 'record') for teacher in self.model.mmkd.teachers]
            owners['methods'] = [(method, 'forward') for method in self.model.mmkd.methods.values()]
        measured: dict[str, list[float]] = {name: [] for name in (*owners, 'forward')}
        for _ in range(iters):
            with timed(owners) as seconds:
                start = now()
                self()
                seconds['forward'] = now() - start - sum(seconds.values())
            for name, value in seconds.items():
                measured[name].append(value)
        return {name: statistics.median(values) for name, values in measured.items()}


def with_measurement(step: Step) -> Callable[[], None]:
    """Return a distilling step that measures the gradients of the methods beside the task's."""
    balance = step.model.mmkd.gradient_balance

    def run():
        balance.due = True
        step()
        balance.due = False

    return run


def after_the_end(step: Step) -> Callable[[], None]:
    """Return a distilling step as it is when a schedule has ended all methods."""
    methods = [method for method in step.model.mmkd.methods.values() if method.active]

    def run():
        for method in methods:
            method.active = False
        step()
        for method in methods:
            method.active = True

    return run


@contextmanager
def timed(owners: dict[str, list[tuple[object, str]]]):
    """Add up the seconds that are spent in methods of objects inside the block, by name."""
    seconds = dict.fromkeys(owners, 0.0)

    def clocked(name, function):
        def call(*args, **kwargs):
            start = now()
            result = function(*args, **kwargs)
            seconds[name] += now() - start
            return result
        return call

    timed_methods = [(name, owner, method) for name, pairs in owners.items() for owner, method in pairs]
    try:
        for name, owner, method in timed_methods:
            setattr(owner, method, clocked(name, getattr(owner, method)))
        yield seconds
    finally:
        for _, owner, method in timed_methods:
            owner.__dict__.pop(method, None)


def teachers_forward(model: nn.Module, data: dict) -> dict[str, Callable[[], None]]:
    """Return the teachers' forward pass as far as the methods need it.

    Returns:
        dict: ``teacher``, on copies of the plain networks; ``mmkd_teacher``, as mmkd runs
            them with their options.
    """
    spots = model.mmkd.teacher_spots
    if not spots:
        return dict(teacher=lambda: None)
    teachers = model.mmkd.teachers
    networks = [copy.deepcopy(teacher.model) for teacher in teachers]
    batch = preprocessed(model, data)
    rois = None
    if any(teacher.needs_rois(spots) for teacher in teachers):
        with torch.no_grad(), model.mmkd.recorder(model) as recorder:
            model.loss(**batch)
        rois = recorder['rois']
    inputs = [teacher.convert(**batch) for teacher in teachers]

    @torch.inference_mode()
    def forward():
        for network, images in zip(networks, inputs, strict=True):
            if not hasattr(network, 'backbone'):
                network(images)
                continue
            features = network.extract_feat(images)
            if any(spot.startswith('cls_') or 'head' in spot for spot in spots):
                classify(network, features, rois)

    def mmkd_teacher():
        for teacher in teachers:
            teacher(**batch, rois=rois, spots=spots)

    return dict(teacher=forward, mmkd_teacher=mmkd_teacher)


def trained_parts(model: nn.Module, data: dict) -> Callable[[], None] | None:
    """Return forward and backward of all layers that methods train, on their inputs of a step.

    These are the outermost modules with parameters that are called with nothing but tensors.
    """
    calls, depth = [], 0
    modules = [module for method in model.mmkd.methods.values() for module in method.modules()
               if any(parameter.requires_grad for parameter in module.parameters())]

    def enter(module, args):
        nonlocal depth
        if _only_tensors(args):
            if not depth:
                calls.append((module, args))
            depth += 1

    def leave(module, args, output):
        nonlocal depth
        depth -= _only_tensors(args)

    handles = [handle for module in modules
               for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))]
    batch = preprocessed(model, data)
    model.loss(batch['inputs'], batch['data_samples'])
    for handle in handles:
        handle.remove()
    if not calls:
        return None
    calls = [(module, _leaves(args)) for module, args in calls]

    def forward_and_backward():
        outputs = [tensors_in(module(*args)) for module, args in calls]
        sum(tensor.sum() for tensors in outputs for tensor in tensors if tensor.requires_grad).backward()

    return forward_and_backward


def _only_tensors(value) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(_only_tensors(part) for part in value)
    return isinstance(value, Tensor)


def _leaves(value):
    """Return copies of tensors that are leaves of the graph and require a gradient where the originals do."""
    if isinstance(value, (tuple, list)):
        return [_leaves(part) for part in value]
    return value.detach().clone().requires_grad_(value.requires_grad)


def take_turns(parts: dict[str, Callable], iters: int) -> dict[str, float]:
    """Run all parts in turns; return the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(iters + 2):  # two to warm up
        for name, part in parts.items():
            start = now()
            part()
            end = now()
            if turn >= 2:
                seconds[name].append(end - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(part: Callable, device: torch.device) -> int:
    """Return the peak of allocated bytes during a call, above what was allocated before."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        part()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        part()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    if not events:  # nothing was allocated
        return 0
    clock = 'start_ns' if hasattr(events[0], 'start_ns') else 'start_us'  # torch 2.1 has the latter
    level = peak = 0
    for event in sorted(events, key=methodcaller(clock)):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def loading(cfg: Config, batches: int) -> dict:
    """Return how long the config's data loader takes for a batch, or why it cannot be measured."""
    loader = copy.deepcopy(cfg.train_dataloader)
    if 'CIFAR' in str(loader.dataset.type):
        loader.dataset.download = False
    try:
        iterator = iter(Runner.build_dataloader(loader, seed=0))
        next(iterator)  # workers start, and fill their queues
        start = time.perf_counter()
        number = sum(1 for _, _ in zip(range(batches), iterator, strict=False))
        return dict(batch_size=loader.batch_size, workers=loader.num_workers,
                    seconds=(time.perf_counter() - start) / max(number, 1))
    except (FileNotFoundError, OSError, RuntimeError) as error:
        return dict(missing=str(error))


def describe(figures: dict) -> list[str]:
    """Return the figures as lines of text."""
    titles = dict(student='student alone, its step', teacher="teacher's forward pass",
                  mmkd_teacher='the same as mmkd runs it', proxy='what else is trained, forward and backward',
                  floor='floor: all of these together', distill='distilling step',
                  measured='the same with a measurement of gradients',
                  ended='the same after all methods have ended', against=f'step of {figures["against"]}')
    lines = []
    for name, title in titles.items():
        if name in figures['seconds']:
            line = f'{title:44s} {1000 * figures["seconds"][name]:9.1f} ms'
            if name in figures['memory']:
                line += f'   peak {figures["memory"][name] / 2**20:8.1f} MiB'
            lines.append(line)
    ratios = dict(floor='distilling step / floor', student='distilling step / student alone',
                  against='distilling step / step of --against',
                  ended='step after the end / student alone',
                  gradient_ratios='step with gradient ratios in the log / without',
                  balance='step of balanced methods / without balance',
                  teacher="teacher as mmkd runs it / its forward pass")
    lines += [f'{ratios[name]:44s} {value:9.3f}' for name, value in figures['ratios'].items()]
    lines += ['', 'where the time goes:              student   distilling']
    for name, value in figures['profile']['distill'].items():
        alone = figures['profile']['student'].get(name)
        text = ' ' * 12 if alone is None else f'{1000 * alone:9.1f} ms'
        lines.append(f'    {name:24s} {text} {1000 * value:9.1f} ms')
    loader = figures['loading']
    if 'missing' in loader:
        return [*lines, '', f'data loading: not measured ({loader["missing"]})']
    return [*lines, '', f'data loading, {loader["batch_size"]} images, {loader["workers"]} workers: '
            f'{1000 * loader["seconds"]:.1f} ms per batch']
