"""Reading, preparing and reducing whole configs."""
import copy
import os

import torch
from mmengine.config import Config, ConfigDict

from ..checkpoints import SAFE_PREFIX
from ..errors import MMKDError
from ..models.teachers import TeacherCache

_METHOD_HOOKS = dict(
    train_labels='mmkd.TrainLabelsHook',
    first_phase='mmkd.FirstPhaseHook',
    epoch_report='mmkd.EpochReportHook')
"""Hooks that serve the methods: their keys in ``default_hooks`` and their types."""


def is_distillation(cfg: Config) -> bool:
    """Whether a config's model is one of mmkd's distillers."""
    kind = _name((cfg.get('model') or {}).get('type', '')).split('.')[-1]
    return kind in ('ClassifierDistiller', 'DetectorDistiller')


def trains_classifier(cfg: Config) -> bool:
    """Whether a config is one of MMPretrain's."""
    kind = (cfg.get('model') or {}).get('type', '')
    if is_distillation(cfg):
        return _name(kind).endswith('ClassifierDistiller')
    scope = cfg.get('default_scope', 'mmdet')
    return scope == 'mmpretrain' or (isinstance(kind, str) and kind.startswith('mmpretrain.'))


def prepare_config(cfg: Config, distributed: bool = False) -> Config:
    """Set what mmkd's promises need and the user's config leaves open.

    That is: the student's own rules for its own parameters, whole-file checkpoints that hold the student's
    config, exact resuming, the teacher check, the hooks that serve the methods, training data that a
    teacher's cache can answer for, safe loading, and a CPU form of distributed training. All of it is visible
    in the config that the Runner saves beside the log.
    A student trained alone is prepared in the same way, so that it can be compared.

    Args:
        cfg: A whole training config; changed in place.
        distributed: Whether several processes train.

    Returns:
        Config: ``cfg``.
    """
    _import_mmkd(cfg)
    _prepare_optimizer(cfg)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if checkpoint is not None and _name(checkpoint.get('type')) == 'CheckpointHook':
        checkpoint['type'] = 'mmkd.CheckpointHook'
    hooks.setdefault('exact_resume', ConfigDict()).setdefault('type', 'mmkd.ExactResumeHook')
    if is_distillation(cfg):
        hooks.setdefault('teacher_check', ConfigDict()).setdefault('type', 'mmkd.TeacherCheckHook')
        for name, kind in _METHOD_HOOKS.items():
            hooks.setdefault(name, ConfigDict()).setdefault('type', kind)
        folders = [teacher.cache for teacher in teacher_configs(cfg) if teacher.get('cache')]
        if folders:
            replay_training_data(cfg, TeacherCache(folders[0]).views)
    loader = cfg.train_dataloader
    loader['persistent_workers'] = False
    if loader.get('num_workers', 0) > 0:
        loader.setdefault('worker_init_fn', ConfigDict(type='mmkd.seed_worker'))
    set_model_wrapper(cfg, distributed)
    if cfg.get('load_from'):
        cfg.load_from = safe_source(cfg.load_from)
    return cfg


def model_config(cfg: Config) -> ConfigDict:
    """Return the config of a whole config's model, with the data preprocessor that MMPretrain has at the top.

    MMEngine's Runner hands that over in the same way.
    """
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return model


def teacher_configs(cfg: Config) -> list[ConfigDict]:
    """Return the configs of all teachers of a distilling config; what is none is told when they are built."""
    teachers = cfg.model.get('teacher') or []
    teachers = [teachers] if isinstance(teachers, dict) else teachers
    return [teacher for teacher in teachers if isinstance(teacher, dict)]


def replay_training_data(cfg: Config, views: int) -> None:
    """Make the training data of a distilling classifier a fixed number of views that can be asked for again.

    What mixes images of a batch (Mixup, CutMix) is moved from the student into the data, which mix them one
    by one. Data that have ``views`` already stay as they are.

    Args:
        cfg: A whole training config; changed in place.
        views: How many there shall be.

    Raises:
        MMKDError: If another sampler or another way of mixing stands in the way.
    """
    loader = cfg.train_dataloader
    if loader.get('num_batch_per_epoch'):
        raise MMKDError('A teacher cache needs epochs of all images; leave out '
                        'train_dataloader.num_batch_per_epoch.')
    kind = _name(loader.sampler.get('type')).split('.')[-1]
    if kind not in ('DefaultSampler', 'ViewSampler'):
        raise MMKDError(f'A teacher cache needs every image once in an epoch, which the sampler {kind} does '
                        "not give; set train_dataloader.sampler.type='DefaultSampler'.")
    loader.sampler.type = 'mmkd.ViewSampler'
    if 'views' in loader.dataset or _name(loader.dataset.type).endswith('ResidentDataset'):
        loader.dataset['views'] = loader.dataset.get('views') or views
        return
    loader.dataset = ConfigDict(type='mmkd.ReplayedDataset', dataset=loader.dataset, views=views)
    if augments := _take_batch_augments(cfg):
        loader.dataset.mix = augments


def _take_batch_augments(cfg: Config) -> list[dict]:
    """Remove the ways to mix images of a batch from a config and return them."""
    found = ConfigDict()
    student = cfg.model.student
    if student.get('train_cfg'):
        found = ConfigDict({key: student.train_cfg.pop(key) for key in ('augments', 'probs')
                            if key in student.train_cfg})
    for preprocessor in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor'),
                         student.get('data_preprocessor')):
        found = (preprocessor or {}).pop('batch_augments', None) or found
    if found.get('probs'):
        raise MMKDError('Mixing only some images (`probs` of the batch augmentations) cannot be replayed; '
                        'leave it out.')
    augments = found.get('augments') or []
    return [augments] if isinstance(augments, dict) else list(augments)


def set_model_wrapper(cfg: Config, distributed: bool) -> None:
    """Let data-parallel training run on CPU; MMEngine's default names a GPU."""
    if distributed and not torch.cuda.is_available():
        cfg.setdefault('model_wrapper_cfg',
                       ConfigDict(type='MMDistributedDataParallel', device_ids=None))


def safe_source(path: str) -> str:
    """Return a checkpoint's path such that MMEngine's Runner loads it as data only."""
    return path if path.startswith(SAFE_PREFIX) else SAFE_PREFIX + path


def student_config(cfg: Config) -> Config:
    """Return the stock student's config inside a training config: no trace of distillation is left.

    Args:
        cfg: A whole config, distilling or not; not changed.
    """
    cfg = copy.deepcopy(cfg)
    for key in ('teacher', 'comparison'):  # which a pair names
        cfg.pop(key, None)
    if is_distillation(cfg):
        cfg.model = cfg.model.student
    if 'custom_imports' in cfg and "'mmkd." not in repr(cfg.model):  # a backbone of mmkd needs it still
        names = [name for name in _as_list(cfg.custom_imports.get('imports'))
                 if name.split('.')[0] != 'mmkd']
        if names:
            cfg.custom_imports['imports'] = names
        else:
            cfg.pop('custom_imports')
    hooks = cfg.get('default_hooks') or {}
    for name, hook in list(hooks.items()):
        if hook and _is_ours(hook.get('type')):
            if name == 'checkpoint':
                hook['type'] = 'CheckpointHook'
            else:
                hooks.pop(name)
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not _is_ours(hook.get('type'))]
    optim = cfg.get('optim_wrapper')
    if optim and _is_ours(optim.get('constructor')):
        optim.pop('constructor')
        optim.pop('extra', None)
        if own := optim.pop('student_constructor', None):
            optim['constructor'] = own
    loader = cfg.get('train_dataloader')
    if loader and _is_ours((loader.get('worker_init_fn') or {}).get('type')):
        loader.pop('worker_init_fn')
    if loader and _name((loader.get('dataset') or {}).get('type')).endswith('ReplayedDataset'):
        if loader.dataset.get('mix'):
            cfg.model.setdefault('train_cfg', ConfigDict()).augments = loader.dataset.mix
        loader.dataset, loader.sampler.type = loader.dataset.dataset, 'DefaultSampler'
    if cfg.get('load_from'):
        cfg.load_from = cfg.load_from.removeprefix(SAFE_PREFIX)
    return cfg


_READ_FROM_FOLDERS = ('CustomDataset', 'ImageNet')
"""Datasets of MMPretrain that need no annotation file, and that it does not download."""


def check_annotation_files(loader: dict | list | None, role: str) -> None:
    """Check that the annotation files of a data loader, or of evaluators, exist, or else the image folders.

    Args:
        loader: Config of a data loader, of an evaluator, or a list of evaluators.
        role: Its key in the whole config.

    Raises:
        MMKDError: Naming the first one that does not.
    """
    todo = [loader]
    where = f'{role}.dataset.data_root or ann_file' if 'dataset' in (loader or {}) else f'{role}.ann_file'
    while todo:
        node = todo.pop()
        if isinstance(node, (list, tuple)):
            todo.extend(node)
        elif isinstance(node, dict):
            if isinstance(node.get('ann_file'), str) and node['ann_file']:
                path = node['ann_file']
                if not os.path.isabs(path):
                    path = os.path.join(node.get('data_root') or '', path)
                if '://' not in path and not os.path.exists(path):
                    raise MMKDError(f'The annotation file {path!r} of {role} does not exist; '
                                    f'set {where} to where the data are.')
            elif _name(node.get('type')).split('.')[-1] in _READ_FROM_FOLDERS:
                path = node.get('data_root') or ''
                if path and '://' not in path and not os.path.isdir(path):
                    raise MMKDError(f'The image folder {path!r} of {role} does not exist; '
                                    f'set {role}.dataset.data_root to where the data are.')
            todo.extend(node.get(key) for key in ('dataset', 'datasets'))


def _import_mmkd(cfg: Config) -> None:
    imports = cfg.setdefault('custom_imports', ConfigDict(imports=[], allow_failed_imports=False))
    names = _as_list(imports.get('imports'))
    if 'mmkd' not in names:
        imports['imports'] = [*names, 'mmkd']


def _prepare_optimizer(cfg: Config) -> None:
    optim = cfg.get('optim_wrapper')
    if optim is None or not is_distillation(cfg) or _is_ours(optim.get('constructor')):
        return
    if 'constructor' in optim:
        optim['student_constructor'] = optim['constructor']
    optim['constructor'] = 'mmkd.DistillOptimWrapperConstructor'


def _name(kind) -> str:
    return kind if isinstance(kind, str) else getattr(kind, '__name__', '')


def _is_ours(kind) -> bool:
    if isinstance(kind, str):
        return kind.startswith('mmkd.')
    return getattr(kind, '__module__', '').split('.')[0] == 'mmkd'


def _as_list(names) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
