"""Reading, preparing and reducing whole configs."""
import copy
import os
import re
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from ..checkpoints import SAFE_PREFIX
from ..errors import MMKDError
from ..models.teachers import TeacherCache
from .checks import check_hooks

_DISTILLATION_HOOKS = dict(teacher_check='mmkd.TeacherCheckHook', train_labels='mmkd.TrainLabelsHook',
                           first_phase='mmkd.FirstPhaseHook', warmup='mmkd.WarmupHook',
                           gradient_ratio='mmkd.GradientRatioHook', epoch_report='mmkd.EpochReportHook')
"""Hooks that distillation needs: their keys in ``default_hooks`` and their types."""


def is_distillation(cfg: Config) -> bool:
    """Whether the model of a config is one of mmkd's distillers."""
    kind = _name((cfg.get('model') or {}).get('type', '')).split('.')[-1]
    return kind in ('ClassifierDistiller', 'DetectorDistiller')


def trains_classifier(cfg: Config) -> bool:
    """Whether a config trains a classifier of MMPretrain."""
    kind = (cfg.get('model') or {}).get('type', '')
    if is_distillation(cfg):
        return _name(kind).endswith('ClassifierDistiller')
    scope = cfg.get('default_scope', 'mmdet')
    return scope == 'mmpretrain' or (isinstance(kind, str) and kind.startswith('mmpretrain.'))


def prepare_config(cfg: Config, distributed: bool = False) -> Config:
    """Add the settings that mmkd needs and that the user's config does not set.

    These are: the optimizer constructor that applies the user's rules to the student's parameters only,
    atomic checkpoints with the student's config, exact resuming, the checks of losses, weights and the
    teacher, the hooks that serve the methods, training data that a teacher's cache covers, safe loading, and
    distributed training on CPU. All of them are visible in the config that the Runner saves beside the log. A
    student that is trained alone is prepared in the same way, so that it can be compared.

    Args:
        cfg: A whole training config; changed in place.
        distributed: Whether the training is distributed over several processes.

    Returns:
        Config: ``cfg``.

    Raises:
        MMKDError: If a default hook has no type.
    """
    _import_mmkd(cfg)
    _prepare_optimizer(cfg)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if checkpoint is not None and _name(checkpoint.get('type')) == 'CheckpointHook':
        checkpoint['type'] = 'mmkd.CheckpointHook'
    hooks.setdefault('finite_check', ConfigDict()).setdefault('type', 'mmkd.FiniteCheckHook')
    hooks.setdefault('exact_resume', ConfigDict()).setdefault('type', 'mmkd.ExactResumeHook')
    hooks.setdefault('preemption', ConfigDict()).setdefault('type', 'mmkd.PreemptionHook')
    hooks.setdefault('hang', ConfigDict()).setdefault('type', 'mmkd.HangHook')
    if is_distillation(cfg):
        for name, kind in _DISTILLATION_HOOKS.items():
            hooks.setdefault(name, ConfigDict()).setdefault('type', kind)
        folders = [teacher.cache for teacher in teacher_configs(cfg) if teacher.get('cache')]
        if folders:
            replay_training_data(cfg, TeacherCache(folders[0]).views)
    check_hooks(cfg)
    _prepare_loop(cfg)
    set_model_wrapper(cfg, distributed)
    if cfg.get('load_from'):
        cfg.load_from = safe_source(cfg.load_from)
    return cfg


def model_config(cfg: Config) -> ConfigDict:
    """Return the model of a whole config, with the data preprocessor that MMPretrain has at the top.

    MMEngine's Runner passes the data preprocessor on in the same way.
    """
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return model


def teacher_configs(cfg: Config) -> list[ConfigDict]:
    """Return the configs of all teachers; invalid entries are skipped, and rejected when they are built."""
    teachers = cfg.model.get('teacher') or []
    teachers = [teachers] if isinstance(teachers, dict) else teachers
    return [teacher for teacher in teachers if isinstance(teacher, dict)]


def replay_training_data(cfg: Config, views: int) -> None:
    """Turn the training data of a distilling classifier into a fixed number of views that can be replayed.

    Mixing of images in a batch (Mixup, CutMix) is moved from the student to the dataset, which mixes pairs of
    images. Datasets with ``views`` stay as they are.

    Args:
        cfg: A whole training config; changed in place.
        views: The number of views.

    Raises:
        MMKDError: If the sampler or the mixing cannot be replayed.
    """
    loader = cfg.train_dataloader
    if loader.get('num_batch_per_epoch'):
        raise MMKDError('A teacher cache needs every image in every epoch; remove '
                        'train_dataloader.num_batch_per_epoch.')
    kind = _name(loader.sampler.get('type')).split('.')[-1]
    if kind not in ('DefaultSampler', 'ViewSampler'):
        raise MMKDError(f'A teacher cache needs every image once per epoch, and the sampler {kind} does not '
                        "guarantee that; set train_dataloader.sampler.type='DefaultSampler'.")
    loader.sampler.type = 'mmkd.ViewSampler'
    if 'views' in loader.dataset or _name(loader.dataset.type).endswith('ResidentDataset'):
        loader.dataset['views'] = loader.dataset.get('views') or views
        return
    loader.dataset = ConfigDict(type='mmkd.ReplayedDataset', dataset=loader.dataset, views=views)
    if augments := _take_batch_augments(cfg):
        loader.dataset.mix = augments


def _take_batch_augments(cfg: Config) -> list[dict]:
    """Remove the batch augmentations (Mixup, CutMix) from a config and return them."""
    student = cfg.model.student
    train_cfg = student.get('train_cfg') or {}
    mixing = {key: train_cfg.pop(key) for key in ('augments', 'probs') if key in train_cfg}
    for preprocessor in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor'),
                         student.get('data_preprocessor')):
        mixing = (preprocessor or {}).pop('batch_augments', None) or mixing
    if mixing.get('probs'):
        raise MMKDError('Mixing only some of the images (`probs` of the batch augmentations) cannot be '
                        'replayed; remove `probs`.')
    augments = mixing.get('augments') or []
    return [augments] if isinstance(augments, dict) else list(augments)


def set_model_wrapper(cfg: Config, distributed: bool) -> None:
    """Let data-parallel training run on CPU; MMEngine's default needs a GPU."""
    if distributed and not torch.cuda.is_available():
        cfg.setdefault('model_wrapper_cfg', ConfigDict(type='MMDistributedDataParallel', device_ids=None))


def safe_source(path: str) -> str:
    """Return the path of a checkpoint in the form that MMEngine's Runner loads as data only."""
    return path if path.startswith(SAFE_PREFIX) else SAFE_PREFIX + path


def student_config(cfg: Config) -> Config:
    """Return the config of the stock student in a training config, without any trace of distillation.

    Args:
        cfg: A whole config, distilling or not; not changed.
    """
    cfg = copy.deepcopy(cfg)
    for key in ('teacher', 'comparison'):  # set by configs of pairs of networks
        cfg.pop(key, None)
    if is_distillation(cfg):
        cfg.model = cfg.model.student
    if 'custom_imports' in cfg and "'mmkd." not in repr(cfg.model):  # backbones of mmkd still need the import
        names = [name for name in _as_list(cfg.custom_imports.get('imports'))
                 if name.split('.')[0] != 'mmkd']
        if names:
            cfg.custom_imports['imports'] = names
        else:
            cfg.pop('custom_imports')
    hooks = cfg.get('default_hooks') or {}
    for name, hook in list(hooks.items()):
        if hook and (not hook.get('type') or _is_from_mmkd(hook['type'])):
            if name == 'checkpoint':
                hook['type'] = 'CheckpointHook'
            else:
                hooks.pop(name)
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not _is_from_mmkd(hook.get('type'))]
    optim = cfg.get('optim_wrapper')
    if optim and _is_from_mmkd(optim.get('constructor')):
        optim.pop('constructor')
        optim.pop('extra', None)
        if constructor := optim.pop('student_constructor', None):
            optim['constructor'] = constructor
    loop = cfg.get('train_cfg')
    if loop and _is_from_mmkd(loop.get('type')):
        loop['type'] = _name(loop['type']).split('.')[-1]
    loader = cfg.get('train_dataloader')
    if loader and _name((loader.get('dataset') or {}).get('type')).endswith('ReplayedDataset'):
        if loader.dataset.get('mix'):
            cfg.model.setdefault('train_cfg', ConfigDict()).augments = loader.dataset.mix
        loader.dataset, loader.sampler.type = loader.dataset.dataset, 'DefaultSampler'
    if cfg.get('load_from'):
        cfg.load_from = cfg.load_from.removeprefix(SAFE_PREFIX)
    return cfg


_READ_FROM_FOLDERS = ('CustomDataset', 'ImageNet')
"""Datasets of MMPretrain that need no annotation file and are not downloaded."""


def check_annotation_files(loader: dict | list | None, role: str) -> None:
    """Check that the annotation files or image folders of a data loader or of evaluators exist.

    Args:
        loader: Config of a data loader or an evaluator, or a list of evaluators.
        role: The key of ``loader`` in the whole config.

    Raises:
        MMKDError: If one does not exist.
    """
    pending: list[Any] = [loader]
    key = f'{role}.dataset.data_root or ann_file' if 'dataset' in (loader or {}) else f'{role}.ann_file'
    while pending:
        node = pending.pop()
        if isinstance(node, (list, tuple)):
            pending.extend(node)
        elif isinstance(node, dict):
            if isinstance(node.get('ann_file'), str) and node['ann_file']:
                path = node['ann_file']
                if not os.path.isabs(path):
                    path = os.path.join(node.get('data_root') or '', path)
                if '://' not in path and not os.path.exists(path):
                    raise MMKDError(f'The annotation file {path!r} of {role} does not exist; '
                                    f'set {key} to the path of the data{_draw(path)}.')
            elif _name(node.get('type')).split('.')[-1] in _READ_FROM_FOLDERS:
                path = node.get('data_root') or ''
                if path and '://' not in path and not os.path.isdir(path):
                    raise MMKDError(f'The image folder {path!r} of {role} does not exist; '
                                    f'set {role}.dataset.data_root to the path of the data{_draw(path)}.')
            pending.extend(node.get(child) for child in ('dataset', 'datasets'))


def _draw(path: str) -> str:
    """Return how the data of a shipped example are made, as the end of a sentence."""
    match = re.match(r'data/(digits_\w+)', path)
    return f", or draw them with 'mmkd digits {match[1]}'" if match else ''


def _import_mmkd(cfg: Config) -> None:
    imports = cfg.setdefault('custom_imports', ConfigDict(imports=[], allow_failed_imports=False))
    names = _as_list(imports.get('imports'))
    if 'mmkd' not in names:
        imports['imports'] = [*names, 'mmkd']


def _prepare_optimizer(cfg: Config) -> None:
    optim = cfg.get('optim_wrapper')
    if optim is None or not is_distillation(cfg) or _is_from_mmkd(optim.get('constructor')):
        return
    if 'constructor' in optim:
        optim['student_constructor'] = optim['constructor']
    optim['constructor'] = 'mmkd.DistillOptimWrapperConstructor'


def _prepare_loop(cfg: Config) -> None:
    """Choose mmkd's version of MMEngine's training loop, which resumes at any iteration."""
    loop = cfg.get('train_cfg') or ConfigDict()
    if 'by_epoch' in loop and 'type' not in loop:
        loop['type'] = 'EpochBasedTrainLoop' if loop.pop('by_epoch') else 'IterBasedTrainLoop'
    kind = _name(loop.get('type'))
    if kind.split('.')[-1] in ('EpochBasedTrainLoop', 'IterBasedTrainLoop') and not kind.startswith('mmkd.'):
        loop['type'] = f'mmkd.{kind.split(".")[-1]}'
    loader = cfg.train_dataloader
    # The caches of these transforms must be empty at the start of an epoch, so that they can be filled again.
    if not loader.get('num_workers') or any(name in repr((loader, cfg.get('custom_hooks')))
                                            for name in ('CachedMosaic', 'CachedMixUp')):
        loader['persistent_workers'] = False


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, '__name__', '')


def _is_from_mmkd(kind: Any) -> bool:
    if isinstance(kind, str):
        return kind.startswith('mmkd.')
    return getattr(kind, '__module__', '').split('.')[0] == 'mmkd'


def _as_list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
