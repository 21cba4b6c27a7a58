"""Try a distilling config without data: build it, show what is recorded where, take a few steps.

python tools/misc/dry_run.py configs/shake_faster_rcnn_r50.py --random-teacher --size 256
"""
import argparse
import time

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmkd.apis import is_distillation, prepare_config
from mmkd.apis.config import model_config, teacher_configs
from mmkd.cli import OptionsAction, at_least, device, merge_options, read_config, run_tool
from mmkd.errors import MMKDError
from mmkd.models.methods import TrainLabelsMethod
from mmkd.models.spots import classification_heads, is_classifier, logit_layout


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a distilling config')
    parser.add_argument('--steps', type=at_least(1), default=2, help='training steps to take')
    parser.add_argument('--size', type=at_least(1), default=256, help='height and width of the random images')
    parser.add_argument('--batch', type=at_least(1), default=2, help='images a step')
    parser.add_argument('--random-teacher', action='store_true',
                        help='do not look for the teacher\'s and the backbone\'s weights')
    parser.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE')
    return parser.parse_args()


def describe(value) -> str:
    """Return the shapes of what was recorded at a spot."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, (tuple, list)):
        return ', '.join(describe(item) for item in value)
    return type(value).__name__


def random_batch(model, number: int, size: int) -> dict:
    """Return what a data loader would give: images of noise, with random objects or labels."""
    if not is_classifier(model):
        heads = classification_heads(model)
        return demo_mm_inputs(number, [[3, size, size]] * number,
                              num_classes=heads[0].num_classes if heads else 1)
    from mmpretrain.structures import DataSample
    classes = logit_layout(model, 'student').num_classes
    labels = torch.randint(classes, (number, )).tolist()
    samples = [DataSample(metainfo=dict(num_classes=classes, sample_idx=index)).set_gt_label(label)
               for index, label in enumerate(labels)]
    return dict(inputs=torch.randint(256, (number, 3, size, size), dtype=torch.uint8), data_samples=samples)


def tell_labels(model) -> None:
    """Tell methods that want to know the classes of a training set those of a made-up one."""
    for method in model.mmkd.methods.values():
        if isinstance(method, TrainLabelsMethod) and method.needs_train_labels:
            method.set_train_labels(list(range(logit_layout(model, 'student').num_classes)) * 2)


def load(path: str, cfg_options: dict | None, random_teacher: bool) -> Config:
    """Read and prepare a distilling config.

    Args:
        path: The config.
        cfg_options: Changes of it.
        random_teacher: Whether the teacher's and the backbone's weights are left out.

    Raises:
        MMKDError: If it does not distil.
    """
    cfg = read_config(path)
    merge_options(cfg, cfg_options)
    if not is_distillation(cfg):
        raise MMKDError(f'{path!r} does not distil.')
    if random_teacher:
        for teacher in teacher_configs(cfg):
            teacher.checkpoint = 'random'
        if 'backbone' in cfg.model.student:
            cfg.model.student.backbone.init_cfg = None
    return prepare_config(cfg)


def build(cfg: Config, device: str) -> nn.Module:
    """Build and initialize a config's network as MMEngine's Runner does, in train mode."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(model_config(cfg))
    model.init_weights()
    if hasattr(model, 'mmkd'):
        tell_labels(model)
    return model.to(device).train()


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('dry_run', log_level='WARNING')  # else every parameter's initialization is told
    cfg = load(args.config, args.cfg_options, args.random_teacher)
    model = build(cfg, args.device)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    student = sum(p.numel() for name, p in model.named_parameters() if not name.startswith('mmkd.'))
    extra = sum(p.numel() for p in model.mmkd.parameters())
    print(f'student: {type(model).__name__}, {student / 1e6:.2f} M parameters')
    for teacher in model.mmkd.teachers:
        print(f'teacher: {teacher.describe()}')
    print(f'methods: {", ".join(model.mmkd.methods)}, {extra / 1e6:.2f} M parameters of their own')

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
