"""Tiny configs and models that many tests share."""
import copy
import importlib
import importlib.util
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.visualization import Visualizer

from mmkd.models.step import Step
from mmkd_cli import COMMANDS, parse

REPO = Path(__file__).resolve().parents[2]


def load_tool(path: str):
    """Import a script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPO / 'tools' / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_command(name: str, *arguments: object) -> None:
    """Run a subcommand of mmkd in this process; mistakes are raised."""
    work = importlib.import_module(f'mmkd.commands.{COMMANDS[name]}')
    work.main(parse(name, [str(word) for word in arguments]))


def tiny_config(name: str = 'student', data: str | None = None) -> Config:
    """Return a quickstart config, shrunk to a network that takes steps in milliseconds."""
    cfg = Config.fromfile(REPO / f'configs/examples/quickstart/{name}.py')
    model = cfg.model.get('student', cfg.model)
    base = 8 if name == 'student' else 16
    shrink(model, base)
    if data is not None:
        point_at(cfg, data)
    return cfg


def shrink(model, base: int) -> None:
    model.backbone.base_channels = base
    model.neck.update(in_channels=[base, 2 * base, 4 * base, 8 * base], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)


def point_at(cfg: Config, data: str) -> None:
    """Read the digits from a folder."""
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.dataset.data_root = f'{data}/'
        loader.num_workers = 0
        loader.persistent_workers = False
        loader.pop('worker_init_fn', None)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{data}/annotations/instances_val.json'


def distill(student, teacher_cfg: str | dict, checkpoint: str = 'random', **methods) -> dict:
    """Return a DetectorDistiller's config."""
    return dict(
        type='mmkd.DetectorDistiller', student=student,
        teacher=dict(config=teacher_cfg, checkpoint=checkpoint),
        methods=methods or dict(shake=dict(type='mmkd.SHAKE')))


def build(cfg: dict, seed: int = 0):
    """Build and initialize a model, in train mode."""
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    return model.train()


def forget_runs() -> None:
    """Drop what MMEngine keeps per process; its log handlers hold on to the output of earlier tests."""
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    for kind in (MMLogger, MessageHub, DefaultScope, *all_subclasses(Visualizer)):
        kind._instance_dict.clear()


def all_subclasses(kind: type) -> set[type]:
    return {kind}.union(*(all_subclasses(child) for child in kind.__subclasses__()))


def losses_and_step(model, method: str, data: dict) -> tuple[dict, Step]:
    """Return the losses of a training step, and the step that a method of the model gets."""
    steps = []
    handle = model.mmkd.methods[method].register_forward_pre_hook(lambda _, args: steps.append(args[0]))
    losses = model(**data, mode='loss')
    handle.remove()
    return losses, steps[0]
