"""Schedules of distillation, by their formula and in real trainings, also in two processes."""
import json
import os
import subprocess
import sys
from glob import glob

import pytest
import torch
from mmengine.runner import Runner

from mmkd.apis import prepare_config
from mmkd.checkpoints import load_checkpoint
from mmkd.engine.hooks import WeightScheduleHook
from mmkd.errors import MMKDError
from tests.helpers.tiny import REPO, distill, tiny_config
from tests.helpers.two_processes import free_port


def test_warm_up():
    hook = WeightScheduleHook(warmup=3)
    assert [hook.factor(i, 0) for i in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(('decay', 'half'), [('linear', 0.25), ('cosine', 0.1464466)])
def test_decay(decay, half):
    hook = WeightScheduleHook(decay_from=4, stop=8, decay=decay)
    assert hook.factor(0, 4) == 1 and hook.factor(0, 2) == 1
    assert hook.factor(0, 6) == pytest.approx(0.5)
    assert hook.factor(0, 7) == pytest.approx(half)
    assert hook.factor(0, 8) == pytest.approx(0)


def test_wrong_settings():
    with pytest.raises(MMKDError, match="not 'exp'"):
        WeightScheduleHook(decay='exp')
    with pytest.raises(MMKDError, match='decay from 8 until 4'):
        WeightScheduleHook(decay_from=8, stop=4)


def config(digits, teacher_config, teacher_checkpoint, **schedule):
    """SHAKE and KD for three epochs of four iterations, with a schedule."""
    cfg = tiny_config(data=digits)
    cfg.model = distill(cfg.model, teacher_config, teacher_checkpoint, shake=dict(type='mmkd.SHAKE'),
                       kd=dict(type='mmkd.KD'))
    cfg.train_cfg.update(max_epochs=3, val_interval=10)
    cfg.param_scheduler = []
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.log_processor = dict(window_size=1)
    cfg.default_hooks.teacher_check = dict(evaluate=False)
    cfg.custom_hooks = [dict(type='mmkd.WeightScheduleHook', **schedule)]
    return cfg


def logged(work_dir) -> list[dict]:
    entries = []
    for path in sorted(glob(f'{work_dir}/*/vis_data/scalars.json')):
        with open(path) as lines:
            entries += [entry for entry in map(json.loads, lines) if 'loss' in entry]
    return entries


@pytest.mark.slow
def test_a_stopped_schedule(digits, teacher_config, teacher_checkpoint, tmp_path):
    """From the stop on: no losses, no teacher, no change of what distillation trained."""
    cfg = config(digits, teacher_config, teacher_checkpoint, decay_from=1, stop=2)
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(prepare_config(cfg))
    runs = []
    runner.model.mmkd.teacher.model.backbone.register_forward_hook(lambda *_: runs.append(runner.iter))
    runner.train()
    assert sorted(set(runs)) == list(range(8))  # the first batch is looked at more than once
    entries = logged(tmp_path)
    assert len(entries) == 12
    for number, entry in enumerate(entries):
        terms = [name for name in entry if name.startswith(('shake.loss', 'kd.loss'))]
        assert len(terms) == (4 if number < 8 else 0)
    assert entries[7]['shake.loss_student'] < entries[4]['shake.loss_student']
    weights = [load_checkpoint(f'{tmp_path}/epoch_3.pth')['state_dict'],
               {name: value.cpu() for name, value in runner.model.state_dict().items()}]
    assert set(weights[0]) == set(weights[1])
    assert not any(p.requires_grad for p in runner.model.mmkd.methods.parameters())
    assert all(p.grad is None for p in runner.model.mmkd.methods.parameters())


def test_one_method_stops_and_the_other_goes_on(digits, teacher_config, teacher_checkpoint, tmp_path):
    cfg = config(digits, teacher_config, teacher_checkpoint, methods='shake', stop=1, warmup=1)
    cfg.work_dir = str(tmp_path)
    Runner.from_cfg(prepare_config(cfg)).train()
    entries = logged(tmp_path)
    assert [('shake.loss_student' in entry, 'kd.loss_student' in entry) for entry in entries] == [
        (number < 4, True) for number in range(12)]


def test_unknown_method(digits, teacher_config, teacher_checkpoint, tmp_path):
    cfg = config(digits, teacher_config, teacher_checkpoint, methods='shkae', stop=1)
    cfg.work_dir = str(tmp_path)
    with pytest.raises(MMKDError, match="no method \\['shkae'\\]; the config has \\['shake', 'kd'\\]"):
        Runner.from_cfg(prepare_config(cfg)).train()


@pytest.mark.slow
@pytest.mark.dist
def test_stopped_and_resumed_in_two_processes(digits, teacher_config, teacher_checkpoint, tmp_path):
    """Gradients of stopped parts are not waited for, in the run that stops and after resuming."""
    cfg = config(digits, teacher_config, teacher_checkpoint, stop=1)
    cfg.train_dataloader.update(batch_size=2, num_workers=0)
    cfg.train_cfg.max_epochs = 2
    cfg.dump(tmp_path / 'config.py')
    env = dict(os.environ, MMKD_PYTHON=sys.executable, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1',
               PORT=str(free_port()))
    for epochs, resume in ((2, []), (3, ['--resume'])):
        done = subprocess.run(
            ['bash', 'tools/dist_train.sh', str(tmp_path / 'config.py'), '2', '--work-dir',
             str(tmp_path / 'run'), *resume, '--cfg-options', f'train_cfg.max_epochs={epochs}'],
            cwd=REPO, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    entries = logged(tmp_path / 'run')
    assert len(entries) == 24
    for number, entry in enumerate(entries):
        assert ('shake.loss_student' in entry) == (number < 8)
    first, last = (load_checkpoint(f'{tmp_path}/run/epoch_{epoch}.pth')['state_dict'] for epoch in (1, 3))
    extra = [name for name in last if name.startswith('mmkd.')]
    assert extra and all(torch.equal(first[name], last[name]) for name in extra)
    assert not torch.equal(first['backbone.conv1.weight'], last['backbone.conv1.weight'])


def iteration_runner(digits, tmp_path, iters=12, **schedule) -> Runner:
    """KD of four iterations an epoch, in a loop that counts iterations."""
    cfg = tiny_config(data=digits)
    cfg.model = distill(cfg.model, tiny_config('teacher').model, kd=dict(type='mmkd.KD'))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=1000)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.param_scheduler = []
    cfg.default_hooks.teacher_check = dict(evaluate=False)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1000)
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor = dict(window_size=1, by_epoch=False)
    cfg.custom_hooks = [dict(type='mmkd.WeightScheduleHook', **schedule)]
    cfg.work_dir = str(tmp_path)
    return Runner.from_cfg(prepare_config(cfg))


@pytest.mark.slow
@pytest.mark.parametrize('schedule', [dict(decay_from=1), dict(decay_from=4, by_epoch=False)],
                         ids=['epochs', 'iterations'])
def test_loops_by_iteration_decay_until_their_last(digits, tmp_path, schedule):
    runner = iteration_runner(digits, tmp_path, **schedule)
    method, factors = runner.model.mmkd.methods.kd, []
    runner.model.mmkd.teacher.model.backbone.register_forward_hook(
        lambda *_: factors.append((runner.iter, method.scale)))
    runner.train()
    assert len(runner.train_dataloader) == 4
    scales = dict(factors)  # the first batch is looked at more than once
    assert list(scales) == list(range(12))
    assert list(scales.values()) == pytest.approx([min(1, 1 - (number - 4) / 8) for number in range(12)])


@pytest.mark.parametrize(('schedule', 'why'), [
    (dict(decay_from=3), 'decay from 3 epochs on: training ends after 3'),
    (dict(decay_from=16, stop=20), 'decay from 16 epochs on: training ends after 3'),
    (dict(decay_from=12, by_epoch=False), 'decay from 12 iterations on: training ends after 12')])
def test_a_decay_that_would_begin_after_the_end(digits, tmp_path, schedule, why):
    runner = iteration_runner(digits, tmp_path, **schedule)
    with pytest.raises(MMKDError, match=why):
        runner.train()
    assert runner.iter == 0
