"""Trainings of a toy network that take milliseconds and use everything that a checkpoint must hold."""
import contextlib
import random

import numpy as np
import torch
from mmdet.models import BatchSyncRandomResize
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn

from mmkd.apis import prepare_config
from mmkd.apis.config import safe_source
from mmkd.engine.runner_access import unwrapped
from tests.helpers.tiny import forget_runs

SAMPLES = 22


class CachedToy:
    """Adds a random earlier sample, as CachedMixUp does."""

    def __init__(self) -> None:
        self.results_cache: list = []

    def __call__(self, results: dict) -> dict:
        self.results_cache.append(results['inputs'].clone())
        if len(self.results_cache) > 5:
            self.results_cache.pop(random.randint(0, 5))
        return dict(results, inputs=results['inputs'] + random.choice(self.results_cache))


@DATASETS.register_module()
class ToyDataset:
    """Vectors with random noise from three generators."""

    metainfo = dict(classes=('a', ))

    def __init__(self, cached: bool = False) -> None:
        self.pipeline = [CachedToy()] if cached else []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict:
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        results = dict(inputs=torch.tensor([index / SAMPLES, *noise]), data_samples=index)
        for transform in self.pipeline:
            results = transform(results)
        return results

    def get_data_info(self, index: int) -> dict:
        return dict(width=1 + index % 3, height=2)


@MODELS.register_module()
class ToyModel(BaseModel):
    """Batch normalization and dropout; remembers the batches that it was trained on."""

    def __init__(self, resize: bool = False) -> None:
        super().__init__()
        if resize:
            self.resize = BatchSyncRandomResize((32, 640), interval=3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.batches: list[tuple] = []

    def forward(self, inputs, data_samples, mode='tensor'):
        inputs = torch.stack(inputs)
        outputs = self.net(inputs)
        if mode == 'loss':
            loss = (outputs - inputs.sum(dim=1, keepdim=True)).square().mean()
            size = self.resize(torch.zeros(1, 1, 32, 32), [])[0].shape if hasattr(self, 'resize') else None
            self.batches.append((list(data_samples), inputs.sum().item(), loss.item(), size))
            return dict(loss=loss)
        return [dict(output=value.item()) for value in outputs]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """The sum of the outputs; draws random numbers, as some metrics do."""

    def process(self, data_batch, data_samples) -> None:
        random.random(), np.random.rand(), torch.rand(())
        self.results += [sample['output'] for sample in data_samples]

    def compute_metrics(self, results) -> dict:
        return dict(score=sum(results))


class Stop(Exception):  # noqa: N818
    """Stands for a kill."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends a run after an iteration, after everything that belongs to it, or when validation begins."""

    priority = 'LOWEST'

    def __init__(self, after: int | None = None, in_validation: int | None = None) -> None:
        self.after = after
        self.in_validation = in_validation

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.after:
            raise Stop

    def before_val_epoch(self, runner) -> None:
        if runner.iter == self.in_validation:
            raise Stop


def toy_config(work_dir, by_epoch: bool = True, length: int = 3, val_interval: int = 1, **loader) -> Config:
    """Return a config that is not prepared yet.

    Args:
        work_dir: The work directory.
        by_epoch: Whether the loop counts epochs.
        length: Epochs or iterations.
        val_interval: In the same unit.
        loader: Settings of the training data loader.
    """
    data = dict(dataset=dict(type='ToyDataset'), batch_size=4, num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True))
    loop = dict(by_epoch=by_epoch, val_interval=val_interval)
    loop['max_epochs' if by_epoch else 'max_iters'] = length
    return Config(dict(
        default_scope='mmengine', work_dir=str(work_dir), model=dict(type='ToyModel'),
        train_dataloader={**data, **loader}, val_dataloader=dict(data, sampler=dict(type='DefaultSampler')),
        val_evaluator=dict(type='ToyMetric'), val_cfg=dict(), train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=9),
                         dict(type='ReduceOnPlateauLR', monitor='score', rule='greater', patience=0)],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1),
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1,
                                           save_best='score', rule='greater')),
        custom_hooks=[dict(type='EMAHook', momentum=0.1)], randomness=dict(seed=3)))


def train(cfg: Config, resume: str | None = None, stop: dict | None = None) -> Runner:
    """Train, as ``tools/train.py`` does, in a process whose random state is another each time.

    Args:
        cfg: A config; not changed.
        resume: The checkpoint to resume from.
        stop: Settings of a :class:`StopHook`.
    """
    forget_runs()
    distributed = get_world_size() > 1
    cfg = prepare_config(Config(cfg.to_dict()), distributed)
    cfg.launcher = 'pytorch' if distributed else 'none'
    if stop:
        cfg.custom_hooks.append(ConfigDict(type='StopHook', **stop))
    if resume:
        cfg.resume, cfg.load_from = True, safe_source(resume)
    runner = Runner.from_cfg(cfg)
    with contextlib.suppress(Stop):
        runner.train()
    return runner


def batches_of(runner: Runner) -> list[tuple]:
    """Return the batches that the network was trained on: samples, sum of the inputs, loss, size."""
    return unwrapped(runner).batches


def result(runner: Runner) -> dict:
    """Return what two runs that are the same have in common at their end."""
    hooks = {type(hook).__name__: hook for hook in runner.hooks}
    return dict(
        weights=runner.model.state_dict(), optimizer=runner.optim_wrapper.state_dict(),
        ema=hooks['EMAHook'].ema_model.state_dict(),
        schedulers=[scheduler.state_dict() for scheduler in runner.param_schedulers],
        random=torch.rand(4), python=random.random(), numpy=np.random.rand(),
        best=runner.message_hub.get_info('best_score'), iter=runner.iter, epoch=runner.epoch)
