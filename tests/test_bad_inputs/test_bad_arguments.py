"""Arguments, data and folders that cannot be used are refused in one sentence, and nothing is lost."""
import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from tests.helpers.tiny import REPO

# Arguments, data and folders


def test_teacher_without_distill(refused, files, tmp_path):
    refused('train.py', [files.student, '--teacher', files.teacher, '--work-dir', tmp_path / 'work'],
            '--distill METHOD')


def test_distilling_config_with_distill(refused, files, tmp_path):
    refused('train.py', [files.distilling, '--distill', 'kd', '--teacher', files.teacher,
                         '--teacher-checkpoint', files.weights, '--work-dir', tmp_path / 'work'],
            'already distills')


def test_teacher_options_of_a_stock_config(refused, files, tmp_path):
    refused('train.py', [files.student, '--distill', 'kd', '--teacher', files.teacher,
                         '--teacher-checkpoint', 'random', '--work-dir', tmp_path / 'work',
                         '--cfg-options', 'teacher.checkpoint=other.pth'], 'model.teacher', '--cfg-options')


@pytest.mark.parametrize(('key', 'instead'), [
    ('teacher.checkpoint', 'model.teacher.checkpoint'),
    ('methods.shake.weight', 'model.methods.shake.weight'),
    ('student.test_cfg.rcnn', 'model.student.test_cfg.rcnn'),
    ('model.backbone.depth', 'model.student.backbone.depth')])
@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'misc/dry_run.py'])
def test_options_that_would_change_nothing(refused, files, tmp_path, tool, key, instead):
    words = [] if tool == 'misc/dry_run.py' else ['--work-dir', tmp_path / 'work']
    refused(tool, [files.distilling, *([files.weights] if tool == 'test.py' else []), *words,
                   '--cfg-options', f'{key}=1'], f'set {instead} instead of {key}')


@pytest.mark.parametrize(('option', 'said'), [('train_cfg.max_epochs', 'KEY=VALUE, without spaces'),
                                          ('a=[1,(2]', 'brackets')])
@pytest.mark.parametrize('tool', ['train.py', 'misc/dry_run.py', 'misc/cache_teacher.py',
                                  'analysis_tools/benchmark_step.py', 'analysis_tools/benchmark_loading.py'])
def test_an_option_that_cannot_be_read(run, files, tool, option, said):
    ended = run(tool, files.distilling, '--cfg-options', 'a.b=1', option)
    assert ended.code == 2
    assert 'error: --cfg-options: ' in ended.err and said in ended.err


@pytest.mark.parametrize(('tool', 'option', 'value'), [
    ('misc/dry_run.py', '--batch', '0'), ('misc/dry_run.py', '--size', '-1'),
    ('misc/dry_run.py', '--steps', 'two'), ('analysis_tools/benchmark_step.py', '--iters', '0'),
    ('misc/cache_teacher.py', '--batch-size', '0'), ('misc/cache_teacher.py', '--workers', '-1')])
def test_numbers_too_small(run, files, tool, option, value):
    ended = run(tool, files.distilling, option, value)
    assert ended.code == 2
    assert f'argument {option}: must be a whole number of at least ' in ended.err and repr(value) in ended.err


@pytest.mark.parametrize('tool', ['misc/dry_run.py', 'misc/cache_teacher.py',
                                  'analysis_tools/benchmark_step.py'])
@pytest.mark.parametrize('device', ['gpu', 'cuda:99'])
def test_a_device_that_is_not_there(run, files, tool, device):
    ended = run(tool, files.distilling, '--device', device)
    assert ended.code == 2 and f'error: --device {device!r} cannot be used here' in ended.err


@pytest.mark.parametrize(('launcher', 'variable'), [
    ('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK')])
@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_a_launcher_that_did_not_start_this(refused, files, tmp_path, monkeypatch, tool, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    refused(tool, [files.student, *([files.weights] if tool == 'test.py' else []), '--work-dir',
                   tmp_path / 'work', '--launcher', launcher], f'--launcher {launcher}', variable)


@pytest.mark.parametrize(('tool', 'arguments', 'said'), [
    ('misc/dry_run.py', [], 'does not distill'),
    ('model_converters/export_teacher.py', ['out.pth', '--config'], 'does not distill'),
    ('analysis_tools/benchmark_loading.py', [], 'not a training config')])
def test_a_config_without_a_model(refused, files, tool, arguments, said):
    schedule = str(REPO / 'configs/_base_/schedules/crd_240e.py')
    refused(tool, [*([files.weights] if arguments else []), *arguments, schedule], 'crd_240e.py', said)


@pytest.mark.parametrize(('tool', 'arguments'), [
    ('test.py', lambda files, out: [files.teacher, files.weights, '--out', out / 'found.pkl']),
    ('model_converters/export_student.py', lambda files, out: [files.weights, out / 'student.pth']),
    ('model_converters/export_teacher.py',
     lambda files, out: [files.weights, out / 'teacher.pth', '--config', files.distilling])])
def test_outputs_that_cannot_be_written(refused, files, tmp_path, tool, arguments):
    (tmp_path / 'file').write_text('precious')
    words = ['--work-dir', tmp_path / 'work'] if tool == 'test.py' else []
    refused(tool, [*arguments(files, tmp_path / 'file'), *words], tmp_path / 'file', 'cannot be written')


def test_predictions_to_a_folder(refused, files, tmp_path):
    (tmp_path / 'found.pkl').mkdir()
    refused('test.py', [files.teacher, files.weights, '--work-dir', tmp_path / 'work', '--out',
                        tmp_path / 'found.pkl'], tmp_path / 'found.pkl', 'is a folder')


@pytest.mark.skipif(torch.cuda.is_available(), reason='mixed precision works with a GPU')
def test_amp_without_a_gpu(train_config):
    train_config('--amp needs a GPU', arguments=['--amp'])


def test_auto_scale_lr_without_a_batch_size(refused, files, tmp_path):
    cfg = Config.fromfile(files.student)
    cfg.pop('auto_scale_lr')
    cfg.dump(tmp_path / 'student.py')
    refused('train.py', [tmp_path / 'student.py', '--auto-scale-lr', '--work-dir', tmp_path / 'work'],
            'auto_scale_lr.base_batch_size')


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_config_missing(refused, files, tmp_path, tool):
    refused(tool, [tmp_path / 'none.py', *([files.weights] if tool == 'test.py' else [])],
            tmp_path / 'none.py')


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
@pytest.mark.parametrize(('name', 'content'), [('broken.py', 'model = dict('), ('broken.yaml', 'a: [1'),
                                           ('weights.pth', 'PK'), ('plain.py', 'lr = 1')])
def test_config_unreadable(refused, files, tmp_path, tool, name, content):
    (tmp_path / name).write_text(content)
    refused(tool, [tmp_path / name, *([files.weights] if tool == 'test.py' else []),
                   '--work-dir', tmp_path / 'work'], tmp_path / name)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotation_file_missing(train, split):
    train('annotation file', 'none.json', f'{split}_dataloader.dataset',
          options=[f'{split}_dataloader.dataset.ann_file=none.json'])


def test_annotation_file_of_the_evaluator_missing(train):
    train('annotation file', 'none.json', 'val_evaluator', options=['val_evaluator.ann_file=none.json'])


def test_test_annotation_file_missing(refused, files, tmp_path):
    arguments = [files.teacher, files.weights, '--work-dir', tmp_path / 'work', '--cfg-options']
    refused('test.py', [*arguments, 'test_dataloader.dataset.ann_file=none.json'],
            'annotation file', 'none.json', 'test_dataloader')
    refused('test.py', [*arguments, 'test_evaluator.ann_file=none.json'],
            'annotation file', 'none.json', 'test_evaluator')


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_work_dir_below_a_file(refused, files, tmp_path, tool):
    (tmp_path / 'file').write_text('precious')
    config = [files.distilling] if tool == 'train.py' else [files.teacher, files.weights]
    refused(tool, [*config, '--work-dir', tmp_path / 'file/work'], 'work directory',
            tmp_path / 'file/work', 'cannot be written')


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root may write everywhere')
def test_work_dir_read_only(train_config, tmp_path):
    (tmp_path / 'work').mkdir(mode=0o555)
    train_config('work directory', 'Permission denied')


@pytest.mark.parametrize('name', ['epoch_3.pth', 'iter_500.pth', 'best_coco_bbox_mAP_epoch_2.pth'])
def test_work_dir_holds_a_run(train, tmp_path, name):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / name).write_bytes(b'twelve hours of training')
    train('work directory', tmp_path / 'work', 'already holds a run', '--resume')
    assert (tmp_path / 'work' / name).read_bytes() == b'twelve hours of training'


def test_failed_start_does_not_block_the_next(train_config, run, files, tmp_path):
    train_config('does not exist', options=['model.teacher.checkpoint=none.pth'])
    ended = run('train.py', files.distilling, '--work-dir', tmp_path / 'work')
    assert ended.code == 0, ended.err
    assert (tmp_path / 'work/epoch_1.pth').is_file()


# The whole way, as a user sees it


def test_scripts_find_the_checkout_with_an_exported_cdpath():
    done = subprocess.run(
        ['bash', '-c', f'source {REPO.name}/tools/common.sh; echo "$ROOT"'], cwd=REPO.parent, text=True,
        capture_output=True, env={**os.environ, 'CDPATH': str(REPO.parent)})
    assert done.stdout == f'{REPO}\n', done.stderr


def test_quickstart_finds_mmkd_where_it_is_not_installed(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$PYTHONPATH"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ['bash', REPO / 'tools/quickstart.sh'], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, 'MMKD_PYTHON': './python', 'PYTHONPATH': '/other'})
    assert done.stdout == f'{REPO}:/other\n', done.stderr


@pytest.mark.slow
def test_a_process_ends_with_status_2_and_no_traceback(files, tmp_path):
    arguments = [files.distilling, '--work-dir', str(tmp_path / 'work'),
                 '--cfg-options', 'model.methods.shake.type=mmkd.SHAEK']
    ended = subprocess.run(
        [sys.executable, 'tools/train.py', *arguments], cwd=REPO, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1'})
    assert ended.returncode == 2
    assert 'Traceback' not in ended.stderr
    logged = [line for line in ended.stderr.splitlines() if line.startswith('error: ')]
    assert len(logged) == 1 and "'SHAKE'" in logged[0]
    assert ended.stderr.rstrip().endswith(logged[0])
