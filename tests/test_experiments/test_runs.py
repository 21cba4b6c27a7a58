"""Trainings in subprocesses: what they log, and how they are started, stopped and resumed."""
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from mmkd.errors import MMKDError
from mmkd.experiments.comparison import Comparison
from mmkd.experiments.progress import RunProgress
from mmkd.experiments.runs import RunQueue, metrics, read_log
from tests.helpers.tiny import REPO

FASTER_RCNN = 'configs/examples/digits/faster_rcnn_student.py'
CLASSIFIER = 'configs/examples/quickstart/classifier_student.py'


def plan(tmp_path, pair, *methods, seeds=1):
    return Comparison(pairs=(pair, ), methods=('student', *methods), seeds=tuple(range(seeds)),
                      work_dir=tmp_path / 'out', data=tmp_path / 'digits', command='…').plan()


def write_log(work_dir, name, *records):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return folder / 'scalars.json'


def test_log_of_a_resumed_run(tmp_path):
    killed = write_log(
        tmp_path, '20260101_000000', dict(loss=3.0, step=25), dict(loss=2.5, step=50),
        {'coco/bbox_mAP': 0.1, 'step': 1}, dict(loss=2.0, step=75))
    with killed.open('a') as file:
        file.write('{"loss": 1.9, "st')
    write_log(
        tmp_path, '20260101_010000', dict(loss=2.1, step=75), {'coco/bbox_mAP': 0.2, 'step': 2})
    train, val = read_log(tmp_path)
    assert {step: record['loss'] for step, record in train.items()} == {25: 3.0, 50: 2.5, 75: 2.1}
    assert {epoch: metrics(record)['bbox_mAP'] for epoch, record in val.items()} == {
        1: 0.1, 2: 0.2}


def test_a_detector_that_finds_nothing_has_ap_0(tmp_path, monkeypatch):
    def run_command(queue, run, name, *_):
        log, record = 'train/vis_data/scalars.json', dict(loss=1.0, time=0.5, step=3)
        if name == 'test':
            log, record = 'test/run/run.json', {'gap/kl': 0.4, 'gap/agreement': 0.7, 'time': 0.1}
        (run.work_dir / log).parent.mkdir(parents=True)
        (run.work_dir / log).write_text(json.dumps(record))

    monkeypatch.setattr(RunQueue, 'run_command', run_command)
    _, student, *_ = runs = plan(tmp_path, FASTER_RCNN, 'kd')
    RunQueue(runs).train(student)
    assert student.result() == dict(
        metrics=dict(bbox_mAP=0.0, bbox_mAP_50=0.0), seconds_per_iteration=0.5,
        gap=dict(kl=0.4, agreement=0.7))


def test_several_trainings_at_a_time(tmp_path, monkeypatch):
    """Students wait for their teacher and then run side by side; one that fails leaves the others alone."""
    together, order, finished = threading.Barrier(2, timeout=20), [], []

    def run_command(queue, run, tool, arguments, options, show=None):
        order.append(run.method)
        if run.method != 'teacher':
            together.wait()  # passes only where two run at a time
        if (run.method, run.seed) == ('student', 0):
            raise MMKDError('broken')
        record = {'loss': 1.0, 'time': 0.1, 'step': 1}
        last = {'accuracy/top1': 50.0, 'gap/kl': 0.4, 'gap/agreement': 0.7, 'step': run.epochs}
        write_log(run.work_dir, 'run', record, last)

    monkeypatch.setattr(RunQueue, 'run_command', run_command)
    runs = plan(tmp_path, CLASSIFIER, 'kd', seeds=2)
    queue = RunQueue(runs, jobs=2)
    with pytest.raises(MMKDError, match='1 of 5 trainings failed. broken'):
        queue.run(lambda: finished.append([run.finished for run in runs].count(True)))
    assert order[0] == 'teacher' and sorted(order[1:3]) == ['kd', 'student']
    assert [run.finished for run in runs] == [True, False, True, True, True]
    assert len(finished) == finished[-1] == 4
    # Only what is left to do runs again.
    order.clear()
    monkeypatch.setattr(RunQueue, 'run_command', lambda queue, run, *_: order.append(run.method) or write_log(
        run.work_dir, 'run', {'loss': 1.0, 'time': 0.1, 'step': 1},
        {'accuracy/top1': 50.0, 'gap/kl': 0.4, 'gap/agreement': 0.7, 'step': run.epochs}))
    RunQueue(runs).run()
    assert order == ['student']


def test_students_of_a_teacher_that_fails_are_left_out(tmp_path, monkeypatch):
    def run_command(queue, run, *_):
        raise MMKDError(f'{run.method} is broken')

    monkeypatch.setattr(RunQueue, 'run_command', run_command)
    runs = plan(tmp_path, CLASSIFIER, 'kd')
    with pytest.raises(MMKDError) as error:
        RunQueue(runs).run()
    assert str(error.value) == '1 of 3 trainings failed. teacher is broken'


def test_an_interruption_stops_the_others(tmp_path, monkeypatch):
    def run_command(queue, run, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunQueue, 'run_command', run_command)
    queue = RunQueue(plan(tmp_path, CLASSIFIER, 'kd'))
    with pytest.raises(KeyboardInterrupt):
        queue.run()
    assert queue.stop.is_set()


@pytest.mark.slow
def test_a_command_that_fails(tmp_path, capsys):
    teacher, *_ = runs = plan(tmp_path, CLASSIFIER)
    teacher.work_dir.mkdir(parents=True)
    with pytest.raises(MMKDError, match='teacher, seed 0: mmkd test failed with exit status 2'):
        RunQueue(runs).run_command(teacher, 'test', ['none.py', 'none.pth'], {'a.b': 1})
    assert "The config 'none.py' " in capsys.readouterr().err
    assert "The config 'none.py' " in (teacher.work_dir / 'stdout.log').read_text()


@pytest.mark.slow
def test_a_training_holds_its_lock_when_the_experiment_is_killed(tmp_path):
    """The next training in the same directory waits for it."""
    tool = tmp_path / 'tool.py'
    tool.write_text('import sys, time\nfrom mmkd.experiments import locked_command\n'
                    'def main(words):\n    print(words[0], flush=True)\n    time.sleep(float(words[1]))\n'
                    'locked_command.main = main\nlocked_command.run()\n')

    def start(name, seconds):
        return subprocess.Popen([sys.executable, tool, tmp_path / '.lock', name, seconds],
                                env=dict(os.environ, PYTHONPATH=str(REPO)), stdout=subprocess.PIPE, text=True)

    orphan = start('first', '60')
    assert orphan.stdout.readline() == 'first\n'
    second = start('second', '0')
    time.sleep(0.5)
    assert second.poll() is None
    os.kill(orphan.pid, signal.SIGKILL)
    assert second.communicate(timeout=60)[0] == 'second\n'
    orphan.communicate()


def show_progress(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200, soft_wrap=True)
    with RunProgress(['teacher', 'KD [seed 0]'], [600, 225], completed=600, console=console) as progress:
        progress.finish(0, 'AP 74.5 on val')
        progress.start(1)
        progress.last_line = -1000  # long ago
        progress.update(1, 25, 1.5)
        progress.update(1, 25, 1.5)
        progress.update(1, 50, 1.25)
        progress.finish(1, 'AP 45.8 on val')
    assert progress.bars.tasks[0].completed == 825
    return file.getvalue()


def test_progress_in_a_log():
    assert show_progress(terminal=False).splitlines() == [
        '[1/2] teacher: AP 74.5 on val', '[2/2] KD [seed 0]: starting',
        '[2/2] KD [seed 0]: iteration 25/225, loss 1.500', '[2/2] KD [seed 0]: AP 45.8 on val']


def test_progress_on_a_terminal():
    text = show_progress(terminal=True)
    assert '[2/2] KD [seed 0]: AP 45.8 on val' in text and '825/825' in text
