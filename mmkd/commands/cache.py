"""A teacher's class logits, computed once: ``mmkd cache``."""
import argparse
import copy
import os.path as osp
from glob import escape, glob

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..apis import compose_distillation, is_distillation, prepare_config
from ..apis.config import (
    check_annotation_files,
    model_config,
    replay_training_data,
    teacher_configs,
    trains_classifier,
)
from ..checkpoints import remove_partial_files
from ..cli import check_device, check_folder, merge_options, parse_options, read_config
from ..errors import MMKDError
from ..models.spots import LogitLayout, logit_layout
from ..models.teachers import TeacherCache, fingerprint_of
from ..models.teachers.cache import check_room, check_spots, pack, view_bytes


def load(args: argparse.Namespace) -> Config:
    """Return the training config, with data that can be replayed.

    Raises:
        MMKDError: If it does not distill a classifier with one teacher.
    """
    cfg = read_config(args.config)
    merge_options(cfg, parse_options(args.cfg_options))
    if 'model' in cfg and cfg.get('teacher') and not is_distillation(cfg):
        compose_distillation(cfg, 'kd')
    if 'model' not in cfg or not is_distillation(cfg) or not trains_classifier(cfg):
        raise MMKDError(f'{args.config!r} neither distills a classifier nor names a `teacher` for it.')
    teachers = teacher_configs(cfg)
    if len(teachers) != 1:
        raise MMKDError(f'{args.config!r} has {len(teachers)} teachers; a cache is for a single teacher.')
    teachers[0].pop('cache', None)
    check_annotation_files(cfg.train_dataloader, 'train_dataloader')
    if args.views is not None and 'views' in cfg.train_dataloader.dataset:
        cfg.train_dataloader.dataset.views = args.views
    replay_training_data(cfg, 1 if args.views is None else args.views)
    return prepare_config(cfg)


def build_loader(cfg: Config, args: argparse.Namespace) -> DataLoader:
    """Build a data loader of all training images, in order."""
    loader = copy.deepcopy(cfg.train_dataloader)
    loader.pop('batch_sampler', None)
    loader.sampler = ConfigDict(type='mmkd.ViewSampler', shuffle=False)
    loader.drop_last = False
    loader.batch_size = args.batch_size or loader.batch_size
    if args.workers is not None:
        loader.num_workers = args.workers
    return Runner.build_dataloader(loader, seed=0)


def build_student(cfg: Config, device: str) -> nn.Module:
    """Build the distilled student, whose weights do not matter here."""
    return MODELS.build(model_config(cfg)).to(device)


def teacher_logits(student: nn.Module, layout: LogitLayout, data: dict) -> tuple[Tensor, Tensor, int]:
    """Run the teacher on a batch, as in training.

    Args:
        student: The distilled student.
        layout: The layout of its logits.
        data: A batch of the data loader.

    Returns:
        tuple: Logits ``(B, K)``, the numbers of the images ``(B,)``, and the number of images that the
            teacher classifies correctly (for mixed images: as the label with the larger weight).
    """
    batch = student.data_preprocessor(data, True)
    samples = batch['data_samples']
    (logits, ) = layout.logits(
        student.mmkd.teacher.forward(batch['inputs'], samples, spots=['cls_outputs'])['cls_outputs'])
    target = [sample.gt_score.argmax() if 'gt_score' in sample else sample.gt_label[0] for sample in samples]
    correct = int((logits.argmax(dim=1) == torch.stack(target).to(logits.device)).sum())
    return logits, torch.tensor([sample.sample_idx for sample in samples]), correct


def compute_view(student: nn.Module, layout: LogitLayout, loader: DataLoader, kept: int,
                 progress: ProgressBar) -> tuple[dict[str, Tensor], float]:
    """Return the packed logits of the current view of the loader's sampler, and the top-1 accuracy."""
    view: dict[str, Tensor] = {}
    correct = 0
    for data in loader:
        logits, numbers, correct_in_batch = teacher_logits(student, layout, data)
        correct += correct_in_batch
        for name, values in pack(logits, kept).items():
            whole = view.setdefault(name, values.new_empty(len(loader.dataset), *values.shape[1:]))
            whole[numbers] = values
        progress.update(len(numbers))
    return view, 100 * correct / len(loader.dataset)


def fill(cache: TeacherCache, student: nn.Module, layout: LogitLayout, loader: DataLoader) -> None:
    """Compute the views that a cache lacks."""
    missing = [view for view in range(loader.dataset.views) if not cache.has(view)]
    if len(missing) < loader.dataset.views:
        print(f'{loader.dataset.views - len(missing)} views are already in the cache.')
    progress = ProgressBar(len(missing) * len(loader.dataset)) if missing else None
    for view in missing:
        loader.sampler.set_epoch(view)
        packed, top1 = compute_view(student, layout, loader, cache.kept, progress)
        cache.write(view, packed, top1)
        print(f"\nview {view}: the teacher's top-1 accuracy is {top1:.2f} %")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    MMLogger.get_instance('cache_teacher', log_level='WARNING')
    device = check_device(args.device)
    cfg = load(args)
    out = args.out or osp.join('work_dirs', 'teacher_caches', osp.splitext(osp.basename(args.config))[0])
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    student = build_student(cfg, device)
    check_spots(student.mmkd.teacher_spots)
    teacher, layout = student.mmkd.teacher, logit_layout(student, 'student')
    teacher.require_logits(layout)
    teacher.add_spots(['cls_outputs'])
    loader = build_loader(cfg, args)
    dataset = loader.dataset
    kept = args.top_k or layout.num_classes
    if not 0 < kept <= layout.num_classes or (kept < layout.num_classes and layout.activation == 'sigmoid'):
        raise MMKDError(f'--top-k {kept} must be between 1 and {layout.num_classes}, and 0 where classes do '
                        'not exclude each other.')
    size = dataset.views * view_bytes(len(dataset), layout.num_classes, kept)
    existing = sum(osp.getsize(path) for path in glob(osp.join(escape(out), 'view_*')))
    free = check_room(out, size - existing)
    print(f'{len(dataset)} images × {dataset.views} views × {kept} of {layout.num_classes} logits: '
          f'{size / 2**20:.1f} MiB in {out!r}, {existing / 2**20:.1f} MiB of them already exist; '
          f'{free / 2**20:.0f} MiB are free')
    fingerprint = fingerprint_of(teacher, student, cfg.train_dataloader.dataset, dataset)
    check_folder(out, 'folder of --out')
    cache = TeacherCache.create(out, fingerprint, len(dataset), layout.num_classes, kept, dataset.views)
    remove_partial_files(out)
    fill(cache, student, layout, loader)
    print(f"The teacher's top-1 accuracy on these images is {cache.top1():.2f} %. To train with them, use\n\n"
          f'    --cfg-options model.teacher.cache={out}\n\nor write into the config\n\n'
          f'    model = dict(teacher=dict(cache={out!r}))')
