"""Killed runs go on as if nothing had happened."""
import json
import os
import signal
import subprocess
import sys
from glob import glob

import pytest
import torch

from mmkd.checkpoints import latest_checkpoint, load_checkpoint
from tests.helpers.tiny import REPO, distill, tiny_config

pytestmark = pytest.mark.slow

KILLER = '''
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
import mmkd.checkpoints.atomic_files as atomic_files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

@HOOKS.register_module()
class Killer(Hook):
    """Kills the process in the middle of the second epoch, or while its checkpoint is being written."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == 1 and os.environ["KILL"] == "iter" and batch_idx == 3:
            die()
        if runner.epoch == 1 and os.environ["KILL"] == "save":
            atomic_files.os.replace = die
'''


@pytest.fixture(scope='module')
def config(tmp_path_factory, digits, teacher_config, teacher_checkpoint) -> str:
    """SHAKE beside a peer for three epochs, with shuffling, flips, two workers, RoI sampling, validation."""
    folder = tmp_path_factory.mktemp('resume')
    (folder / 'killer.py').write_text(KILLER)
    cfg = tiny_config(data=digits)
    cfg.model = distill(cfg.model, teacher_config, teacher_checkpoint, shake=dict(type='mmkd.SHAKE'),
                       dml=dict(type='mmkd.DML'))
    cfg.train_cfg.update(max_epochs=3, val_interval=1)
    cfg.train_dataloader.dataset.pipeline.insert(-1, dict(type='RandomFlip', prob=0.5))
    cfg.train_dataloader.update(batch_size=4, num_workers=2)
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor = dict(window_size=1)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', evaluate=False)
    cfg.custom_hooks = [dict(type='Killer')]
    cfg.custom_imports = dict(imports=['mmkd', 'killer'], allow_failed_imports=False)
    cfg.dump(folder / 'config.py')
    return str(folder / 'config.py')


def train(config: str, work_dir, kill: str = '', *options: str) -> int:
    env = dict(os.environ, KILL=kill, OMP_NUM_THREADS='1',
               PYTHONPATH=os.pathsep.join([str(REPO), os.path.dirname(config)]))
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(work_dir), *options]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    if not kill:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def losses(work_dir) -> dict:
    """All logged losses by (epoch, iteration); those of a resumed run replace the older ones."""
    logged = {}
    for path in sorted(glob(f'{work_dir}/*/vis_data/scalars.json')):
        with open(path) as lines:
            entries = [json.loads(line) for line in lines]
        for entry in entries:
            if 'loss' in entry:
                logged[entry['epoch'], entry['iter']] = {
                    key: value for key, value in entry.items() if 'loss' in key}
    return logged


@pytest.fixture(scope='module')
def undisturbed(config, tmp_path_factory) -> dict:
    work_dir = tmp_path_factory.mktemp('undisturbed')
    train(config, work_dir)
    logged = losses(work_dir)
    assert len(logged) == 24 and all('shake.loss_student' in entry for entry in logged.values())
    return logged


@pytest.mark.parametrize('kill', ['iter', 'save'])
def test_killed_and_resumed(config, undisturbed, tmp_path, kill):
    assert train(config, tmp_path, kill) == -signal.SIGKILL
    assert os.path.basename(latest_checkpoint(tmp_path)) == 'epoch_1.pth'
    load_checkpoint(latest_checkpoint(tmp_path))  # whole, and nothing but data
    assert bool(glob(f'{tmp_path}/.mmkd-partial-*')) == (kill == 'save')
    before = losses(tmp_path)
    assert before == {key: undisturbed[key] for key in before}

    train(config, tmp_path, '', '--resume')
    after = losses(tmp_path)
    assert after == undisturbed
    assert [os.path.basename(path) for path in glob(f'{tmp_path}/*.pth')] == ['epoch_3.pth']
    assert not glob(f'{tmp_path}/.mmkd-partial-*')


def test_the_checkpoint_holds_every_ranks_random_state(config, undisturbed, tmp_path_factory):
    run = next(path for path in tmp_path_factory.getbasetemp().glob('undisturbed*'))
    checkpoint = load_checkpoint(latest_checkpoint(str(run)))
    (state, ) = checkpoint['mmkd_random_states']
    assert set(state) == {'python', 'numpy', 'torch', 'cuda'}
    assert state['torch'].dtype == torch.uint8
