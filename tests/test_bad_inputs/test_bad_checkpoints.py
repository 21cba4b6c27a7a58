"""Checkpoints that cannot be resumed or tested are refused in one sentence, and no code in them runs."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from tests.helpers.attacks import SAVE, Attack
from tests.helpers.tiny import build


def with_code(path, weights, marker):
    content = torch.load(weights, weights_only=False)
    content['optimizer'] = Attack(marker)
    torch.save(content, path)


@pytest.mark.parametrize('way', ['--resume', '--resume FILE', 'load_from'])
@pytest.mark.parametrize('form', ['student', 'distilling'])
def test_going_on_from_a_file_that_holds_code(refused, files, tmp_path, way, form):
    (tmp_path / 'work').mkdir()
    attack = tmp_path / 'work/epoch_1.pth' if way == '--resume' else tmp_path / 'attack.pth'
    with_code(attack, files.weights, tmp_path / 'executed')
    arguments = {'--resume': ['--resume'], '--resume FILE': ['--resume', attack],
                 'load_from': ['--cfg-options', f'load_from={attack}']}[way]
    refused('train.py', [getattr(files, form), '--work-dir', tmp_path / 'work', *arguments],
            attack, 'posix.mkdir', 'MMKD_ALLOW_UNSAFE_CHECKPOINTS=1')
    assert not (tmp_path / 'executed').exists()


def test_resuming_does_not_run_the_config_in_the_file(run, files, tmp_path):
    # MMEngine's Runner executes the text that it finds under meta.config of a resumed checkpoint.
    cfg = Config.fromfile(files.student)
    student = build(cfg.model)
    optimizer = build_optim_wrapper(student, cfg.optim_wrapper).state_dict()
    meta = dict(epoch=0, iter=0, config=f'import os\nos.mkdir({str(tmp_path / "executed")!r})\nlr = 1\n')
    torch.save(dict(meta=meta, state_dict=student.state_dict(), optimizer=optimizer, message_hub={
        name: {} for name in ('log_scalars', 'runtime_info', 'resumed_keys')}), tmp_path / 'attack.pth')
    ended = run('train.py', files.student, '--work-dir', tmp_path / 'work',
                '--resume', tmp_path / 'attack.pth')
    assert not (tmp_path / 'executed').exists()
    assert ended.code == 0, ended.err


def test_resuming_from_a_missing_file(train_config, tmp_path):
    train_config(tmp_path / 'none.pth', 'does not exist', arguments=['--resume', tmp_path / 'none.pth'])


def test_resuming_from_bare_weights(refused, files, tmp_path):
    weights = build(Config.fromfile(files.student).model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'bare.pth')
    refused('train.py', [files.student, '--work-dir', tmp_path / 'work', '--resume', tmp_path / 'bare.pth'],
            tmp_path / 'bare.pth', 'weights only', 'load_from')


@pytest.mark.parametrize(('form', 'tensor'), [('teacher', 'backbone.bn1.bias'), ('student', 'mmkd.')])
def test_resuming_from_another_model(refused, files, tmp_path, form, tensor):
    # 'student': the run of a student alone does not go on as one with SHAKE.
    weights = build(Config.fromfile(getattr(files, form)).model).state_dict()
    hub = {name: {} for name in ('log_scalars', 'runtime_info', 'resumed_keys')}
    torch.save(
        dict(meta=dict(epoch=0, iter=0), state_dict=weights, message_hub=hub), tmp_path / 'epoch_1.pth')
    config = files.student if form == 'teacher' else files.distilling
    refused('train.py', [config, '--work-dir', tmp_path / 'work', '--resume', tmp_path / 'epoch_1.pth'],
            tmp_path / 'epoch_1.pth', 'another model', tensor, 'load_from')


@pytest.mark.parametrize('form', SAVE)
def test_testing_a_file_that_holds_code(refused, files, tmp_path, form):
    SAVE[form](dict(state_dict=dict(weight=Attack(tmp_path / 'executed'))), tmp_path / 'attack.pth')
    refused('test.py', [files.student, tmp_path / 'attack.pth', '--work-dir', tmp_path / 'work'],
            'attack.pth', 'posix.mkdir', 'MMKD_ALLOW_UNSAFE_CHECKPOINTS=1')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('form', ['student', 'distilling'])
def test_testing_a_checkpoint_of_another_model(refused, files, tmp_path, form):
    refused('test.py', [getattr(files, form), files.weights, '--work-dir', tmp_path / 'work'],
            files.weights, 'does not fit FasterRCNN', 'backbone.conv1.weight is (16, 3, 7, 7)')


def test_testing_a_missing_or_broken_checkpoint(refused, files, tmp_path):
    refused('test.py', [files.student, tmp_path / 'none.pth', '--work-dir', tmp_path / 'work'],
            tmp_path / 'none.pth', 'does not exist')
    (tmp_path / 'broken.pth').write_bytes(Path(files.weights).read_bytes()[:5000])
    refused('test.py', [files.student, tmp_path / 'broken.pth', '--work-dir', tmp_path / 'work'],
            'broken.pth', 'truncated')


def test_predictions_to_a_file_that_is_no_pickle(refused, files, tmp_path):
    refused('test.py', [files.teacher, files.weights, '--work-dir', tmp_path / 'work',
                        '--out', tmp_path / 'predictions.json'], '--out', '.pkl')
