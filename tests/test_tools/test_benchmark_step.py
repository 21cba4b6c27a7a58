"""The cost of a step, against its floor."""
import json

import pytest
import torch

from mmkd.commands import benchmark


@pytest.mark.slow
def test_everything_is_measured(run, tmp_path):
    ended = run('analysis_tools/benchmark_step.py', 'configs/examples/quickstart/shake.py', '--against',
                'configs/examples/quickstart/kd.py', '--random-teacher', '--size', '64', '--batch', '1',
                '--iters', '2', '--device', 'cpu', '--json', tmp_path / 'found.json')
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / 'found.json').read_text())
    seconds, ratios = found['seconds'], found['ratios']
    assert set(seconds) == {
        'student', 'teacher', 'mmkd_teacher', 'proxy', 'distill', 'measured', 'ended', 'against', 'floor'}
    assert all(value > 0 for value in seconds.values())
    assert seconds['floor'] == seconds['student'] + seconds['teacher'] + seconds['proxy']
    assert set(found['memory']) == {*seconds} - {'floor'}
    assert ratios['teacher'] == seconds['mmkd_teacher'] / seconds['teacher']
    assert ratios['ended'] == seconds['ended'] / seconds['student']
    extra = seconds['measured'] / seconds['distill'] - 1
    assert ratios['gradient_ratios'] == pytest.approx(1 + extra / 50)
    assert ratios['balance'] == pytest.approx(1 + extra / 20)
    assert found['memory']['distill'] > found['memory']['proxy'] > 0
    assert set(found['profile']['student']) == {'backward', 'optimizer', 'forward'}
    assert all(value > 0 for value in found['profile']['distill'].values())
    assert {*found['profile']['distill']} == {'backward', 'optimizer', 'forward', 'teacher', 'methods'}
    assert 'missing' in found['loading'] or found['loading']['seconds'] > 0
    assert ratios['floor'] == seconds['distill'] / seconds['floor']
    assert ratios['against'] == seconds['distill'] / seconds['against']
    assert 'distilling step / floor' in ended.out and 'where the time goes' in ended.out
    assert 'after all methods have ended' in ended.out and 'as mmkd runs it' in ended.out


def test_peak_memory_counts_what_is_alive_at_a_time():

    def part():
        for _ in range(3):
            torch.empty(2**20, dtype=torch.uint8).fill_(1)
        kept = torch.empty(2**21, dtype=torch.uint8)
        return kept + 1

    peak = benchmark.peak_memory(part, torch.device('cpu'))
    assert 2**22 <= peak < 2**22 + 2**19


def test_a_part_that_allocates_nothing_has_no_peak():
    assert benchmark.peak_memory(lambda: None, torch.device('cpu')) == 0


@pytest.mark.slow
@pytest.mark.parametrize('other', [
    ['configs/classification/dml/dml_resnet32x4_resnet8x4_cifar100.py'],
    ['configs/examples/quickstart/shake.py', '--against-options',
     'model.student.roi_head.bbox_head.fc_out_channels=24']])
def test_against_another_student(refused, other):
    refused('analysis_tools/benchmark_step.py',
            ['configs/examples/quickstart/kd.py', '--random-teacher', '--against', *other],
            '--against must have the same student', other[0])


def test_train_data_that_are_not_there(refused):
    refused('analysis_tools/benchmark_step.py', [
        'configs/examples/quickstart/kd.py', '--random-teacher', '--train-data', '--cfg-options',
        'train_dataloader.dataset.ann_file=none.json'], 'none.json', 'train_dataloader')


def test_no_method_and_no_teacher_runs_after_the_end(monkeypatch):
    cfg = benchmark.load('configs/examples/quickstart/shake.py', None, random_teacher=True)
    model = benchmark.build(cfg, 'cpu')
    step = benchmark.Step(model, cfg, benchmark.random_batch(model, 1, 64))
    calls = []
    monkeypatch.setattr(model.mmkd.teachers[0].inference, 'record', lambda *_: calls.append('teacher'))
    monkeypatch.setattr(model.mmkd.methods['shake'], 'forward', lambda *_: calls.append('method'))
    benchmark.after_the_end(step)()
    assert calls == [] and model.mmkd.methods['shake'].active


def test_a_config_that_does_not_distill(run):
    ended = run('analysis_tools/benchmark_step.py', 'configs/examples/quickstart/student.py')
    assert ended.code != 0 and 'does not distill' in ended.err


def test_figures_for_a_folder_that_does_not_exist(run, tmp_path):
    ended = run('analysis_tools/benchmark_step.py', 'configs/examples/quickstart/kd.py', '--json',
                tmp_path / 'no/found.json')
    assert ended.code == 2 and '--json' in ended.err and ended.out == ''


def test_figures_into_a_folder(refused, tmp_path):
    refused('analysis_tools/benchmark_step.py', ['configs/examples/quickstart/kd.py', '--json', tmp_path],
            tmp_path, 'is a folder')
