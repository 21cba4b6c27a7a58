"""Who may train in a work directory, from where training resumes, and what happens if the disk is full."""
import errno
import json
import logging
import os

import pytest
from filelock import FileLock
from mmengine.config import Config

from mmkd import work_dir as work_dir_module
from mmkd.checkpoints import atomic_files
from mmkd.errors import MMKDError
from mmkd.work_dir import claim_work_dir, disk_errors, raise_logging_errors, requested_checkpoint


@pytest.mark.parametrize('value', ['', ' '])
def test_an_unset_variable_does_not_start_a_new_training(refused, files, tmp_path, value):
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'epoch_1.pth').write_text('precious')
    refused('train.py', [files.student, '--work-dir', work, '--resume', value], '--resume has an empty value')


@pytest.mark.parametrize(('settings', 'argument', 'expected'), [
    ({}, None, None),
    (dict(resume=False, load_from='weights.pth'), None, None),
    (dict(resume=True), None, 'auto'),
    (dict(resume=True, load_from='mmkd-safe:run/epoch_1.pth'), None, 'run/epoch_1.pth'),
    (dict(resume=True, load_from='run/epoch_1.pth'), 'auto', 'auto')])
def test_the_config_or_the_command_asks_for_resuming(settings, argument, expected):
    assert requested_checkpoint(Config(settings), argument) == expected


@pytest.mark.parametrize('settings', [dict(resume='True'), dict(resume=True, load_from='mmkd-safe:')])
def test_wrong_settings_for_resuming(settings):
    with pytest.raises(MMKDError, match='resume'):
        requested_checkpoint(Config(settings), None)


def test_two_trainings_in_one_folder(refused, files, tmp_path, monkeypatch):
    monkeypatch.setattr(work_dir_module, '_WAIT_FOR_LOCK', 0.1)
    work = tmp_path / 'work'
    work.mkdir()
    with FileLock(work / '.mmkd-lock'):
        for options in ([], ['--resume']):
            refused('train.py', [files.student, '--work-dir', work, *options], work, 'Another process trains')
    lock, _ = claim_work_dir(str(work), None)  # free again
    lock.release()


@pytest.mark.parametrize(('name', 'count'), [
    ('TORCHELASTIC_RUN_ID', 'TORCHELASTIC_RESTART_COUNT'), ('SLURM_JOB_ID', 'SLURM_RESTART_COUNT')])
def test_a_restarted_process_resumes_its_own_training_only(tmp_path, monkeypatch, name, count):
    def claim(launch, restarts, resume=None):
        monkeypatch.setenv(name, launch)
        monkeypatch.setenv(count, str(restarts))
        lock, checkpoint = claim_work_dir(str(work), resume)
        lock.release()
        return checkpoint and os.path.basename(checkpoint)

    work = tmp_path / 'work'
    assert claim('mine', 0) is None
    assert claim('mine', 1) is None  # failed before its first checkpoint
    (work / 'epoch_1.pth').write_text('')
    assert claim('mine', 2) == 'epoch_1.pth'
    for launch, restarts in (('mine', 0), ('foreign', 0), ('foreign', 1)):
        with pytest.raises(MMKDError, match='already holds a run'):
            claim(launch, restarts)

    # Asked to resume from an older file, it goes on from there until it has saved something itself.
    os.utime(work / 'epoch_1.pth', (1, 1))
    assert claim('next', 0, 'start.pth') == 'start.pth'
    assert claim('next', 1, 'start.pth') == 'start.pth'
    (work / 'epoch_2.pth').write_text('')
    assert claim('next', 2, 'start.pth') == 'epoch_2.pth'
    assert 'next' in json.loads((work / '.mmkd-launch').read_text())[0]


@pytest.mark.slow
def test_a_disk_that_fills_up(run, files, tmp_path, monkeypatch):
    work = tmp_path / 'work'
    sync, synced = os.fsync, []

    def fill_up(handle):
        synced.append(handle)
        if len(synced) > 2:  # epoch_1.pth and last_checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(atomic_files.os, 'fsync', fill_up)
    ended = run('train.py', files.student, '--work-dir', work, '--cfg-options', 'train_cfg.max_epochs=3',
                'default_hooks.checkpoint.max_keep_ckpts=1')
    assert ended.code == 2
    sentences = [line for line in ended.err.splitlines() if line.startswith('error: ')]
    assert len(sentences) == 1 and 'Traceback' not in ended.err
    assert 'No space left on device' in sentences[0] and str(work / 'epoch_1.pth') in sentences[0]
    assert [path.name for path in work.glob('*.pth')] == ['epoch_1.pth']
    assert not list(work.glob('.mmkd-partial-*'))


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_faults_of_the_disk(tmp_path, number):
    with pytest.raises(MMKDError, match='there is no checkpoint yet'), disk_errors(str(tmp_path)):
        raise OSError(number, os.strerror(number), 'file')
    (tmp_path / 'epoch_3.pth').write_text('')
    with pytest.raises(MMKDError, match=r"'file' failed .* last good checkpoint is '.*epoch_3.pth'"), \
            disk_errors(str(tmp_path)):
        raise OSError(number, os.strerror(number), 'file')


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(str(tmp_path)):
        (tmp_path / 'image.jpg').read_bytes()


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a device of Linux')
def test_a_full_disk_is_not_a_traceback_for_each_line_of_the_log(capsys):
    logger = logging.Logger('full')
    handler = logging.FileHandler('/dev/full')
    logger.addHandler(handler)
    raise_logging_errors(logger)
    with pytest.raises(OSError, match='No space left'):
        logger.warning('a line')
    with pytest.raises(OSError, match='No space left'):
        handler.close()
    assert 'Logging error' not in capsys.readouterr().err
