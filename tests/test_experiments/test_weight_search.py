"""Successive halving over weights, with trainings that are replaced by a table of results."""
import json

import pytest
from mmengine.config import Config

from mmkd.errors import MMKDError
from mmkd.experiments.runs import RunQueue
from mmkd.experiments.weight_search import WeightSearch, better_half, search, shortened_schedules
from tests.helpers.tiny import load_tool

CONFIG = 'mmkd::examples/quickstart/classifier_student.py'
SCORES = {'student': 0.60, 'default': 0.40, 'weight=10': 0.55, 'weight=100': 0.50, 'share=0.1': 0.65,
          'share=1': 0.70}


@pytest.fixture
def plan(tmp_path):
    return WeightSearch(config=CONFIG, method='at', weights=(10.0, 100.0), shares=(0.1, 1.0),
                        work_dir=tmp_path / 'out', teacher=('teacher.py', 'teacher.pth'), seeds=(100, 101))


@pytest.fixture
def trained(monkeypatch):
    """Replace trainings; return what was trained."""
    runs = []

    def train(queue, run, show):
        runs.append(run)
        gain = 0.01 * run.epochs + 0.002 * (run.seed - 100)
        run.result_path.parent.mkdir(parents=True, exist_ok=True)
        run.result_path.write_text(json.dumps(dict(
            metrics=dict(top1=SCORES[run.method] + gain), seconds_per_iteration=0.1)))

    monkeypatch.setattr(RunQueue, 'train', train)
    monkeypatch.setattr('mmkd.experiments.weight_search.make_digits', lambda configs: None)
    return runs


def test_the_better_half_goes_on_with_twice_the_epochs(plan, trained):
    search(plan)
    rounds = {}
    for run in trained:
        rounds.setdefault(run.epochs, {}).setdefault(run.method, []).append(run.seed)
    assert list(rounds) == [2, 3, 6]
    assert set(rounds[2]) == set(SCORES)
    assert set(rounds[3]) == {'share=1', 'share=0.1', 'weight=10', 'student'}
    assert set(rounds[6]) == {'share=1', 'share=0.1', 'student'}
    assert all(seeds == [100, 101] for methods in rounds.values() for seeds in methods.values())
    found = json.loads((plan.work_dir / 'search.json').read_text())
    assert found['epochs'] == [2, 3, 6] and found['rounds'][2]['share=1'] == pytest.approx(0.761)
    text = (plan.work_dir / 'search.md').read_text()
    assert '| share=1 | 72.1 | 73.1 | 76.1 |' in text and '| default | 42.1 |  |  |' in text
    assert ('Best: share=1, which is `--cfg-options model.methods.at.share=1.0 '
            'model.methods.at.balance=gradient`.') in text
    assert 'not better than the student alone' not in text


def test_finished_trainings_are_not_repeated(plan, trained):
    search(plan)
    number = len(trained)
    search(plan)
    assert len(trained) == number == 2 * (6 + 4 + 3)


def test_a_method_that_does_not_help_is_said_to(plan, trained, monkeypatch):
    monkeypatch.setitem(SCORES, 'student', 0.9)
    search(plan)
    assert 'It is not better than the student alone.' in (plan.work_dir / 'search.md').read_text()


def test_candidates_are_options_of_the_training_tool(plan):
    runs = {run.method: run for run in plan.runs(0, list(plan.candidates)) if run.seed == 101}
    assert runs['student'].train_arguments == () and runs['student'].train_options == {}
    assert runs['weight=10'].train_arguments == (
        '--distill', 'at', '--teacher', 'teacher.py', '--teacher-checkpoint', 'teacher.pth')
    assert runs['weight=10'].train_options['model.methods.at.weight'] == 10
    assert runs['share=0.1'].train_options['model.methods.at.balance'] == 'gradient'
    assert {run.options['randomness.seed'] for run in runs.values()} == {101}
    assert {run.options['train_cfg.max_epochs'] for run in runs.values()} == {2}


def test_schedules_are_shortened():
    cfg = Config(dict(train_cfg=dict(max_epochs=12), param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1)]))
    assert shortened_schedules(cfg, 6) == {
        'param_scheduler.0.end': 250, 'param_scheduler.1.end': 6, 'param_scheduler.1.milestones': [4, 6]}
    cfg.param_scheduler = dict(type='CosineAnnealingLR', T_max=12)
    assert shortened_schedules(cfg, 3) == {'param_scheduler.T_max': 3}
    cfg.param_scheduler = None
    assert shortened_schedules(cfg, 3) == {}


def test_the_student_alone_always_goes_on():
    assert better_half(dict(student=0.1, a=0.5, b=0.7, c=0.6)) == ['b', 'c', 'student']
    assert better_half(dict(student=0.9, a=0.5)) == ['a', 'student']


@pytest.mark.parametrize(('arguments', 'why'), [
    (['--distill', 'att'], "no method 'att'"),
    (['missing.py', '--distill', 'at'], "no config 'missing.py'")])
def test_mistakes_are_told_before_training(monkeypatch, arguments, why):
    tool = load_tool('analysis_tools/find_weight.py')
    config = [] if arguments[0].endswith('.py') else [CONFIG]
    monkeypatch.setattr('sys.argv', ['find_weight.py', *config, *arguments])
    with pytest.raises(MMKDError, match=why):
        tool.main()


@pytest.mark.parametrize('arguments', [
    ['--distill', 'at', '--weights', '-1'], ['--distill', 'at', '--teacher', 'teacher.py'], []])
def test_wrong_arguments(monkeypatch, capsys, arguments):
    tool = load_tool('analysis_tools/find_weight.py')
    monkeypatch.setattr('sys.argv', ['find_weight.py', CONFIG, *arguments])
    with pytest.raises(SystemExit):
        tool.main()
    assert 'error:' in capsys.readouterr().err
