"""What an experiment has to know about a training config, and the digits that some configs train on."""
import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..apis.config import check_annotation_files
from ..cli import parse_options
from ..config_files import read_config
from ..errors import MMKDError

SPLITS = ('train', 'val', 'test')
SMOKE_BATCHES = 2
"""Number of batches that a smoke run takes from data that are not drawn here."""


class Digits(NamedTuple):
    """A dataset of digits: the module that draws it, and its images and seed in real and in smoke runs."""

    module: str
    images: dict[str, int]
    smoke_images: dict[str, int]


DIGITS = dict(
    digits_det=Digits('digits_detection', dict(train=600, val=150, seed=0), dict(train=24, val=8, seed=0)),
    digits_det_6000=Digits('digits_detection', dict(train=6000, val=600, seed=0, image_size=96),
                           dict(train=24, val=8, seed=0, image_size=96)),
    digits_cls=Digits('digits_classification', dict(train=3000, val=2000, seed=0),
                      dict(train=130, val=40, seed=0)))
"""The datasets of digits by the name of their folder."""


@dataclass(frozen=True)
class TrainingConfig:
    """The facts of a training config that an experiment depends on.

    Args:
        path: The config file.
        epochs: Length of the training.
        iterations: The same in iterations.
        metric: The score in the validation records of MMEngine's log.
        options: Config options that all trainings of the experiment have.
        digits: Name of the dataset of digits that it trains on, if any.
        images: How the digits are drawn; empty for other data.
        folder: Folder of the digits, if any.
        teacher: The teacher's config, if the config names a teacher.
        settings: Settings of methods, which the config has under ``comparison``.
        digest: Hash of the whole config.
    """

    path: str
    epochs: int
    iterations: int
    metric: str
    options: dict[str, object]
    digits: str | None
    images: dict[str, int]
    folder: Path | None
    teacher: str | None
    settings: dict[str, dict]
    digest: str


@functools.lru_cache
def read_training_config(path: str, cfg_options: tuple[str, ...] = (), data: Path | None = None,
                         smoke: bool = False) -> TrainingConfig:
    """Read the facts of a training config.

    Args:
        path: The config file.
        cfg_options: Config options ``KEY=VALUE`` of the experiment.
        data: Folder of the digits, if not the default.
        smoke: Whether the experiment only proves that the pipeline works.

    Raises:
        MMKDError: If the file cannot be read or is not a training config, or its data do not exist.
    """
    cfg = load_config(path, cfg_options)
    if not (cfg.get('model') and cfg.get('train_dataloader') and cfg.get('train_cfg', {}).get('max_epochs')):
        raise MMKDError(f'{path} is not a training config: it has no model, no train_dataloader or no '
                        'train_cfg.max_epochs.')
    loader = cfg.train_dataloader
    metric = 'accuracy/top1' if cfg.get('default_scope') == 'mmpretrain' else 'coco/bbox_mAP'
    options: dict[str, object] = {}
    options.update({option.partition('=')[0]: option.partition('=')[2] for option in cfg_options})
    name = Path(loader.dataset.get('data_root') or '').name
    images, folder = {}, None
    if name in DIGITS:
        images = DIGITS[name].smoke_images if smoke else DIGITS[name].images
        number = min(images['train'], loader.dataset.get('indices') or images['train'])
        folder = data or folder_of_digits(name, smoke)
        options.update({f'{split}_dataloader.dataset.data_root': f'{folder}/' for split in SPLITS})
        if metric == 'coco/bbox_mAP':
            options.update({f'{split}_evaluator.ann_file': f'{folder}/annotations/instances_val.json'
                            for split in SPLITS[1:]})
    else:
        for part in ('train_dataloader', 'val_dataloader', 'val_evaluator'):
            check_annotation_files(cfg.get(part), part)
        number = SMOKE_BATCHES * loader.batch_size
        if smoke:
            options.update({f'{_read_dataset(cfg, split)[0]}.indices': number for split in SPLITS})
        else:
            init_default_scope(cfg.default_scope)
            number = len(DATASETS.build(_read_dataset(cfg, 'train')[1]))
    epochs = 1 if smoke else cfg.train_cfg.max_epochs
    if smoke:
        options.update({'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    rounded_up = 0 if loader.get('drop_last', False) else loader.batch_size - 1
    return TrainingConfig(
        path=path, epochs=epochs, iterations=epochs * ((number + rounded_up) // loader.batch_size),
        metric=metric, options=options, digits=name if images else None, images=images, folder=folder,
        teacher=(cfg.get('teacher') or {}).get('config'), settings=cfg.get('comparison', {}),
        digest=digest(cfg.to_dict()))


def _read_dataset(cfg: Config, split: str) -> tuple[str, dict]:
    """Return the key and the config of a split's dataset; one that is held in memory is not read here."""
    key, dataset = f'{split}_dataloader.dataset', cfg[f'{split}_dataloader'].dataset
    while dataset.type == 'mmkd.ResidentDataset':
        key, dataset = f'{key}.dataset', dataset.dataset
    return key, dataset


def load_config(path: str, cfg_options: Iterable[str] = ()) -> Config:
    """Load a config file with config options ``KEY=VALUE``.

    Raises:
        MMKDError: If the file cannot be read.
    """
    cfg = read_config(path)
    cfg.merge_from_dict(parse_options(cfg_options))
    return cfg


def make_digits(configs: Iterable[TrainingConfig]) -> None:
    """Draw the digits that some configs train on, where they are missing.

    Raises:
        MMKDError: If they cannot be drawn, or configs with different digits have the same folder.
    """
    by_folder: dict[Path, TrainingConfig] = {}
    for config in configs:
        if config.folder and by_folder.setdefault(config.folder, config).digits != config.digits:
            raise MMKDError('--data is a single folder, but the configs use several datasets.')
    for folder, config in by_folder.items():
        draw_digits(str(config.digits), config.images, folder)


def draw_digits(name: str, images: dict[str, int], folder: Path) -> None:
    """Draw digits into a folder, unless they are there.

    Args:
        name: One of :data:`DIGITS`.
        images: How they are drawn: the arguments of the module that draws them.
        folder: The folder.

    Raises:
        MMKDError: If they cannot be drawn, or the folder has others.
    """
    # It needs scikit-learn, which other data do not.
    module = import_module(f'mmkd.datasets.{DIGITS[name].module}')
    try:
        made = module.make(folder, **images)
    except OSError as error:
        raise MMKDError(str(error)) from error
    print(f'Digits {"drawn" if made else "found"} in {folder}', flush=True)


def folder_of_digits(name: str, smoke: bool) -> Path:
    """Return the default folder of a dataset of digits, in which the configs look for it."""
    return Path(f'data/{name}{"_smoke" if smoke else ""}').resolve()


def digest(content: object) -> str:
    """Return a short hash of settings."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
