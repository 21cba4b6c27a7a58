"""The cost of a step, against its floor."""
import json


def test_everything_is_measured(run, tmp_path):
    ended = run('analysis_tools/benchmark_step.py', 'configs/quickstart/shake.py', '--against',
                'configs/quickstart/kd.py', '--random-teacher', '--size', '64', '--batch', '1', '--iters',
                '2', '--device', 'cpu', '--json', tmp_path / 'found.json')
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / 'found.json').read_text())
    seconds, ratios = found['seconds'], found['ratios']
    assert set(seconds) == {'student', 'teacher', 'distill', 'against', 'floor'}
    assert all(value > 0 for value in seconds.values())
    assert seconds['floor'] == seconds['student'] + seconds['teacher']
    assert ratios['floor'] == seconds['distill'] / seconds['floor']
    assert ratios['against'] == seconds['distill'] / seconds['against']
    assert 'distilling step / floor' in ended.out


def test_a_config_that_does_not_distil(run):
    ended = run('analysis_tools/benchmark_step.py', 'configs/quickstart/student.py')
    assert ended.code != 0 and 'does not distil' in ended.err
