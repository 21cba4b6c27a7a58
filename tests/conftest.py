"""Fixtures that many tests share: digits, and a teacher that has learned."""
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import mmkd  # noqa: F401
from tests.helpers.tiny import REPO, forget_runs, load_tool, tiny_config

os.chdir(REPO)  # configs name each other relative to the repository, as users do
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Run files with slow tests first, so that no worker waits for the last of them alone."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope='session')
def unformatted_configs():
    """Every run writes its config twice, and YAPF takes longer to lay it out than all the rest together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield


@pytest.fixture(autouse=True)
def _fresh_process():
    """As in a new process: MMDetection's scope, and no visualizer of an earlier run."""
    forget_runs()
    init_default_scope('mmdet')


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> str:
    """A small digits detection set: 32 images to train on, 16 to validate on."""
    out = tmp_path_factory.mktemp('data') / 'digits'
    load_tool('dataset_converters/digits_to_coco.py').make(str(out), train=32, val=16, seed=0)
    return str(out)


@pytest.fixture(scope='session')
def teacher_config(digits, tmp_path_factory) -> str:
    """Path of a tiny teacher's config."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.py'
    tiny_config('teacher', digits).dump(path)
    return str(path)


@pytest.fixture(scope='session')
def teacher_checkpoint(teacher_config, tmp_path_factory) -> str:
    """A teacher's checkpoint after 80 real updates: no longer random."""
    cfg = Config.fromfile(teacher_config)
    cfg.work_dir = str(tmp_path_factory.mktemp('teacher_run'))
    cfg.train_cfg.update(max_epochs=20, val_interval=100)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.interval = 20
    init_default_scope('mmdet')
    Runner.from_cfg(cfg).train()
    return f'{cfg.work_dir}/epoch_20.pth'


@pytest.fixture(scope='session')
def batch(digits) -> dict:
    """A batch of four training images, as a data loader gives it."""
    init_default_scope('mmdet')
    cfg = tiny_config(data=digits)
    cfg.train_dataloader.batch_size = 4
    return next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
