"""The command lines that compare methods, with real trainings in the test's own process."""
import dataclasses
import json

import mmcv
import pytest

from mmkd.commands import quickstart
from mmkd.commands.compare import plan
from mmkd.experiments import comparison
from mmkd.experiments.runs import RunQueue
from mmkd_cli import parse
from mmkd_cli.compare import PAIRS
from tests.helpers.tiny import REPO

FASTER_RCNN = 'configs/examples/digits/faster_rcnn_student.py'
CLASSIFIER = 'configs/examples/quickstart/classifier_student.py'
SHIPPED = 'mmkd::examples/quickstart/classifier_student.py'


def arguments(tmp_path, *words):
    folders = ['--out', str(tmp_path / 'out'), '--data', str(tmp_path / 'digits')]
    return plan(parse('compare', [*folders, *words]))


@pytest.mark.parametrize('tool', ['analysis_tools/compare_methods.py', 'quickstart.py'])
def test_help(run, tool):
    ended = run(tool, '--help')
    assert ended.code == 0 and '--smoke' in ended.out
    assert ('shake_alone' in ended.out) is (tool != 'quickstart.py')


def test_defaults():
    everything = plan(parse('compare', []))
    assert everything.pairs == PAIRS and everything.seeds == (0, 1, 2) and everything.jobs == 1
    assert everything.methods == ('student', 'kd', 'kdtuned', 'dml', 'sokd', 'shake_student', 'shake_teacher',
                                  'shake_alone')
    assert plan(parse('compare', ['--first-seed', '100', '--seeds', '1'])).seeds == (100, )


def test_command_is_the_same_in_any_checkout(tmp_path):
    command = arguments(
        tmp_path, CLASSIFIER, '--methods', 'kd', '--smoke', '--jobs', '2', '--cfg-options', 'a.b=1',
        'c=[1,2]').command
    assert command == (
        f'mmkd compare {CLASSIFIER} --methods student kd --seeds 3 '
        "--first-seed 0 --cfg-options a.b=1 'c=[1,2]' --jobs 2 --smoke")


def test_called_from_another_folder(tmp_path, monkeypatch):
    """A pair is found there, or in the package."""
    (tmp_path / 'small_student.py').write_text(f"_base_ = {str(REPO / CLASSIFIER)!r}")
    monkeypatch.chdir(tmp_path)
    compared = arguments(tmp_path, 'small_student.py', SHIPPED, '--seeds', '1', '--smoke')
    assert compared.pairs == ('small_student.py', SHIPPED)


@pytest.mark.parametrize(('words', 'said'), [
    (('configs/none.py', ), "no config 'configs/none.py'"),
    ((CLASSIFIER, CLASSIFIER), 'same name'),
    (('--cfg-options', 'a=1', 'b'), "'b' is not KEY=VALUE, without spaces"),
    (('--jobs', '0'), 'argument --jobs: must be a whole number')])
def test_bad_arguments_are_told(run, tmp_path, words, said):
    ended = run('analysis_tools/compare_methods.py', *words, '--out', tmp_path)
    assert ended.code == 2 and said in ended.err


def test_quickstart_is_a_comparison(tmp_path):
    detection = quickstart.plan(parse('quickstart', ['--work-dir', str(tmp_path), '--seeds', '2']))
    assert detection.command == 'mmkd quickstart --seeds 2'
    teacher, *students = detection.plan()
    # configs/_base_/pairs/digits_quickstart.py names this checkpoint.
    assert teacher.checkpoint == tmp_path / 'teacher/epoch_8.pth'
    assert [student.work_dir.name for student in students] == [
        f'{method}_seed{seed}' for seed in (0, 1) for method in ('student', 'kd', 'shake')]
    classification = quickstart.plan(parse('quickstart', ['--task', 'classification']))
    assert classification.seeds == (0, 1, 2)
    assert classification.work_dir == REPO / 'work_dirs/quickstart_classification'


@pytest.fixture
def in_process(run, monkeypatch):
    """List of the methods and commands that are run in this process: only starting processes is left out.

    A method and a command in ``interrupted`` raise KeyboardInterrupt.
    """
    started, interrupted = [], []

    def run_command(queue, training, name, words, options, show=None):
        started.append((training.method, name))
        if started[-1:] == interrupted:
            interrupted.clear()
            raise KeyboardInterrupt
        options = {**options, **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')}}
        changes = [f'{key}={value}' for key, value in options.items()]
        ended = run(f'{name}.py', *words, '--cfg-options', *changes)
        assert ended.code == 0, ended.err

    monkeypatch.setattr(RunQueue, 'run_command', run_command)
    monkeypatch.setattr(comparison.signal, 'signal', lambda *_: None)
    return started, interrupted


@pytest.mark.slow
def test_smoke_run_goes_on_where_it_was_interrupted(in_process, tmp_path):
    started, interrupted = in_process
    compared = arguments(tmp_path, FASTER_RCNN, '--smoke', '--methods', 'shake_teacher', '--seeds', '1')
    interrupted.append(('student', 'test'))
    with pytest.raises(SystemExit, match='go on'):
        comparison.compare(compared)
    assert started == [('teacher', 'train'), ('student', 'train'), ('student', 'test')]
    started.clear()
    comparison.compare(compared)
    assert started == [
        ('student', 'train'), ('student', 'test'), ('shake_teacher', 'train')]

    summary = json.loads((compared.work_dir / 'comparison.json').read_text())
    methods = summary['pairs']['faster_rcnn']['methods']
    assert list(methods) == ['student', 'shake_teacher']
    for row in methods.values():
        assert row['gap']['kl']['mean'] > 0
        assert 0 <= row['gap']['agreement']['mean'] <= 1
        assert row['seconds_per_iteration'] > 0
    assert summary['settings']['iterations'] == dict(faster_rcnn=dict(teacher=3, students=3))
    assert '| SHAKE (teacher) |' in (compared.work_dir / 'comparison.md').read_text()

    # Everything is finished: only the pictures are new.
    started.clear()
    comparison.compare(dataclasses.replace(compared, pictures=True))
    assert started == []
    for name in ('curves.png', 'detections.png'):
        assert mmcv.imread(str(compared.work_dir / 'faster_rcnn' / name)).std() > 10

    # Measured while training and afterwards, the gap is the same.
    *_, shake = runs = compared.plan()
    record = RunQueue(runs).test(shake)
    assert record['gap/kl'] == pytest.approx(shake.result()['gap']['kl'], rel=1e-4)
    assert record['coco/bbox_mAP'] == shake.result()['metrics']['bbox_mAP']


@pytest.mark.slow
def test_classifiers_are_compared_by_top_1(in_process, tmp_path):
    compared = arguments(
        tmp_path, CLASSIFIER, '--smoke', '--methods', 'sokd', 'shake_teacher', '--seeds', '1')
    comparison.compare(dataclasses.replace(compared, pictures=True))
    part = json.loads((compared.work_dir / 'comparison.json').read_text())['pairs']['classifier']
    assert part['metric'] == 'top1'
    assert list(part['methods']) == ['student', 'sokd', 'shake_teacher']
    for row in part['methods'].values():
        assert 0 <= row['mean'] <= 1 and row['gap']['kl']['mean'] > 0
    assert '| top-1 |' in (compared.work_dir / 'comparison.md').read_text()
    assert (compared.work_dir / 'classifier/curves.png').read_bytes().startswith(b'\x89PNG')
