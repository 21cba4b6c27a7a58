"""Measure what exact resuming costs: per batch, per checkpoint, and at the start of a training.

python tests/resume_cost.py
"""
import io
import statistics
import time
from types import SimpleNamespace

import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import mmkd  # noqa: F401
from mmkd.datasets.seeded_batches import SeededBatch, seed_batches
from mmkd.engine.run_fingerprint import fingerprint_of_run
from mmkd.engine.training_state import get_training_states
from tests.helpers.tiny import build, distill, load_tool, tiny_config


def seconds(function) -> float:
    start = time.process_time()  # another program on the machine should not count
    function()
    return time.process_time() - start


def size_of(value) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return file.tell()


def loading(folder: str) -> None:
    """Compare passes over a data loader with and without seeds, in turn."""
    load_tool('dataset_converters/digits_to_coco.py').make(folder, train=160, val=8, seed=0)
    cfg = tiny_config(data=folder).train_dataloader
    cfg.update(batch_size=8, num_workers=0)
    cfg.dataset.pipeline.insert(-1, dict(type='RandomFlip', prob=0.5))
    stock, seeded = (Runner.build_dataloader(cfg, seed=0) for _ in range(2))
    seed_batches(seeded)
    times: dict[str, list[float]] = dict(stock=[], seeded=[])
    for number in range(31):
        for name, loader in [('stock', stock), ('seeded', seeded)][::(-1) ** number]:
            times[name].append(seconds(lambda loader=loader: list(loader)))
    without, with_seeds = (1000 * statistics.median(values[1:]) / len(stock) for values in times.values())
    print(f'loading a batch of 8 without workers: {without:.2f} ms, with seeds {with_seeds:.2f} ms; '
          f'ratio {with_seeds / without:.3f}')
    batch = SeededBatch([0] * 8, (0, 0, 0, 0))
    alone = seconds(lambda: [list(iter(batch)) for _ in range(2000)]) / 2000
    print(f'seeding and restoring, alone: {1e6 * alone:.0f} µs per batch')


def checkpoints() -> None:
    """Compare the state of a rank with the rest of a checkpoint of Faster R-CNN R50 under SHAKE."""
    student, teacher = (get_config(f'mmdet::faster_rcnn/faster-rcnn_{name}_fpn_1x_coco.py').model
                        for name in ('r50', 'r101'))
    for model in (student, teacher):
        model.backbone.init_cfg = None
    torch.save(dict(state_dict=build(teacher).state_dict()), '/tmp/mmkd_resume_cost.pth')
    cfg = ConfigDict(model=distill(student, ConfigDict(teacher), '/tmp/mmkd_resume_cost.pth'),
                     optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                     train_cfg=dict(type='EpochBasedTrainLoop'), train_dataloader=dict(batch_size=2))
    model = build(cfg.model)
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=1e-9, momentum=0.9),
                                              accumulative_counts=2))
    runner = SimpleNamespace(cfg=cfg, model=model, optim_wrapper=wrapper, hooks=[])
    wrapper._inner_count = 2
    plain = statistics.median(seconds(lambda: get_training_states(runner)) for _ in range(9))
    plain_size = size_of(get_training_states(runner))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    wrapper.optimizer.step()
    wrapper._inner_count = 1
    collected = statistics.median(seconds(lambda: get_training_states(runner)) for _ in range(9))
    collected_size = size_of(get_training_states(runner))
    checkpoint = dict(state_dict=model.state_dict(), optimizer=wrapper.state_dict())
    saving = statistics.median(seconds(lambda: size_of(checkpoint)) for _ in range(5))
    print(f'checkpoint: {size_of(checkpoint) / 1e6:.0f} MB, {saving:.2f} s to memory; for resuming, of a '
          f'rank: {plain_size / 1e3:.0f} kB, {1000 * plain:.1f} ms; with half-collected gradients '
          f'{collected_size / 1e6:.0f} MB, {1000 * collected:.0f} ms')
    weights = sum(value.numel() * value.element_size()
                  for value in model.mmkd.teachers[0].model.state_dict().values())
    times = statistics.median(seconds(lambda: fingerprint_of_run(runner)) for _ in range(5))
    print(f'fingerprint at the start: {times:.2f} s for a teacher of {weights / 1e6:.0f} MB')


if __name__ == '__main__':
    torch.set_num_threads(1)
    init_default_scope('mmdet')
    loading('/tmp/mmkd_resume_cost')
    checkpoints()
