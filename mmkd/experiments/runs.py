"""Trainings in subprocesses, which can be interrupted at any time and go on where they were.

A run is finished when its ``result.json`` exists. A run that is not finished starts from its last checkpoint.
"""
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import MMKDError
from .progress import RunProgress

SCORES = dict(bbox_mAP='AP', top1='top-1')
"""The metrics that are compared, by the names that MMDetection and MMPretrain give them."""


class TrainingLog(NamedTuple):
    """What MMEngine logged in a work directory.

    Args:
        train: Training records by iteration.
        val: Validation records by epoch.
    """

    train: dict[int, dict]
    val: dict[int, dict]


@dataclass(frozen=True)
class Run:
    """A training.

    Args:
        title: Its name for people.
        method: Its name in results.
        seed: Its random seed.
        config: Config for ``mmkd train`` and ``mmkd test``.
        work_dir: Its work directory.
        epochs: Its length in epochs.
        iterations: Its length in iterations.
        options: Config options of training and testing.
        settings: Everything that its result depends on.
        train_arguments: Further arguments of ``mmkd train``.
        train_options: Config options of training alone.
        test_arguments: Further arguments of ``mmkd test``.
        metric: A metric that the last epoch must have; where the log lacks it, the last checkpoint is tested.
        teacher: The run that must be finished first.
    """

    title: str
    method: str
    seed: int
    config: str
    work_dir: Path
    epochs: int
    iterations: int
    options: dict[str, object]
    settings: dict
    train_arguments: tuple[object, ...] = ()
    train_options: dict[str, object] = field(default_factory=dict)
    test_arguments: tuple[object, ...] = ()
    metric: str = 'coco/bbox_mAP'
    teacher: 'Run | None' = None

    @property
    def checkpoint(self) -> Path:
        """Path of the last checkpoint."""
        return self.work_dir / f'epoch_{self.epochs}.pth'

    @property
    def result_path(self) -> Path:
        """Path of the result, which only a finished run has."""
        return self.work_dir / 'result.json'

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.result_path.is_file()

    def result(self) -> dict:
        """Read the result."""
        return json.loads(self.result_path.read_text())

    def check_settings(self) -> None:
        """Check that the work directory is new, or was made with the same settings.

        Raises:
            MMKDError: If it was made with other settings.
        """
        path = self.work_dir / 'settings.json'
        if not path.is_file():
            return
        previous = json.loads(path.read_text())
        # The name of the pair changes nothing, so pairs with the same teacher can have copies of its folder.
        changed = [key for key in self.settings if key != 'pair' and previous.get(key) != self.settings[key]]
        if changed:
            raise MMKDError(f'{self.work_dir} was made with other settings ({", ".join(changed)}); '
                            'delete it or choose another folder.')


class RunQueue:
    """Runs all trainings that are not finished, a teacher before its students.

    Args:
        runs: The trainings, teachers before their students.
        jobs: How many run at a time and share the cores.
    """

    def __init__(self, runs: Sequence[Run], jobs: int = 1) -> None:
        self.runs = runs
        self.jobs = jobs
        self.stop = threading.Event()

    def run(self, report: Callable[[], object] = lambda: None) -> None:
        """Run the trainings. When one fails, the others go on, except for the students of a failed teacher.

        Args:
            report: Called after every training that this call has finished, one call at a time.

        Raises:
            MMKDError: If a work directory was made with other settings; or, after all others, if trainings
                failed.
        """
        for run in self.runs:
            run.check_settings()
        completed = sum(run.iterations for run in self.runs if run.finished)
        titles = [run.title for run in self.runs]
        iterations = [run.iterations for run in self.runs]
        futures: dict[int, Future] = {}
        failures = []
        with RunProgress(titles, iterations, completed) as progress, ThreadPoolExecutor(self.jobs) as pool:
            # Teachers come first in the list, so a student never keeps its teacher waiting.
            for index, run in enumerate(self.runs):
                futures[id(run)] = pool.submit(
                    self._run_one, index, progress, futures.get(id(run.teacher)))
            try:
                for future in as_completed(futures.values()):
                    try:
                        if future.result():
                            report()
                    except MMKDError as error:
                        failures.append(str(error))
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        if failures:
            raise MMKDError(f'{len(failures)} of {len(self.runs)} trainings failed. '
                            + '\n'.join(sorted(failures)))

    def train(self, run: Run, show: Callable[[TrainingLog], None] = lambda log: None) -> None:
        """Train one run from its last checkpoint to the end, and write its result.

        Args:
            run: The training.
            show: Called with the log about once a second.

        Raises:
            MMKDError: If the training fails.
        """
        write_json(run.work_dir / 'settings.json', run.settings)
        self.run_command(run, 'train', [run.config, '--work-dir', run.work_dir, '--resume',
                                        *run.train_arguments], {**run.options, **run.train_options}, show)
        log = read_log(run.work_dir)
        record = log.val.get(run.epochs, {})
        # A run that was killed during its last validation has nothing left to train, and does not repeat it.
        if run.metric not in record:
            record = self.test(run)
        result = dict(
            # Where no object is detected, MMDetection logs no metrics.
            metrics=metrics(record) or dict(bbox_mAP=0.0, bbox_mAP_50=0.0),
            seconds_per_iteration=statistics.median(entry['time'] for entry in log.train.values()))
        if 'gap/kl' in record:
            result['gap'] = dict(kl=record['gap/kl'], agreement=record['gap/agreement'])
        write_json(run.result_path, result)

    def test(self, run: Run) -> dict:
        """Evaluate the last checkpoint of a run and return its metrics."""
        work_dir = run.work_dir / 'test'
        self.run_command(run, 'test', [run.config, run.checkpoint, '--work-dir', work_dir,
                                       *run.test_arguments], run.options)
        return json.loads(max(work_dir.glob('*/*.json')).read_text())

    def run_command(self, run: Run, name: str, arguments: Sequence[object], options: dict[str, object],
                 show: Callable[[TrainingLog], None] = lambda log: None) -> None:
        """Run a command of mmkd in a subprocess, with its output in ``stdout.log``.

        Args:
            run: The training.
            name: ``'train'`` or ``'test'``.
            arguments: Its arguments.
            options: Its config options.
            show: Called with the log about once a second.

        Raises:
            MMKDError: If the command fails or is stopped.
        """
        command = [sys.executable, '-m', 'mmkd.experiments.locked_command', run.work_dir / '.lock',
                   name, *arguments, '--cfg-options', *(f'{key}={value}' for key, value in options.items())]
        output = run.work_dir / 'stdout.log'
        with output.open('a') as file:
            process = subprocess.Popen([str(word) for word in command], stdout=file,
                                       stderr=subprocess.STDOUT, env=self._environment(run),
                                       start_new_session=True)
        try:
            while process.poll() is None:
                if self.stop.wait(1):
                    raise MMKDError(f'{run.title}: stopped.')
                show(read_log(run.work_dir))
        finally:
            if process.poll() is None:
                # Together with its data loading workers.
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode:
            with output.open(errors='replace') as lines:
                print(''.join(deque(lines, 25)), file=sys.stderr)
            raise MMKDError(
                f'{run.title}: mmkd {name} failed with exit status {process.returncode}; its output is in '
                f'{output}. Run the same command again to go on from the last checkpoint.')

    def _environment(self, run: Run) -> dict[str, str]:
        # Where cores are shared, threads that wait by spinning make a step several times slower.
        environment = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}
        if self.jobs > 1:
            # Students all wait for a teacher, so fewer trainings share the cores in the beginning.
            teachers = sum(other.teacher is None for other in self.runs)
            together = self.jobs if run.teacher else min(self.jobs, teachers)
            environment['OMP_NUM_THREADS'] = str(max(len(os.sched_getaffinity(0)) // together, 1))
        return environment

    def _run_one(self, index: int, progress: RunProgress, teacher: Future | None) -> bool:
        """Run a training if it is not finished, and return whether this has finished it."""
        run = self.runs[index]
        if teacher and teacher.exception():
            return False  # the teacher's failure is reported
        was_finished = run.finished
        if not was_finished:
            def show(log: TrainingLog) -> None:
                if log.train:
                    iteration = max(log.train)
                    progress.update(index, iteration, log.train[iteration]['loss'])

            if self.stop.is_set():
                raise MMKDError(f'{run.title}: stopped.')
            progress.start(index)
            try:
                self.train(run, show)
            except MMKDError as error:
                progress.finish(index, 'failed')
                raise error
            except BaseException:
                self.stop.set()  # before the pool starts the next training
                raise
        result = run.result()
        name, value = score(result['metrics'])
        progress.finish(index, f'{SCORES[name]} {100 * value:.1f} on val, '
                        f'{result["seconds_per_iteration"]:.2f} s per iteration')
        return not was_finished


def read_log(work_dir: Path) -> TrainingLog:
    """Read MMEngine's log in a work directory, across all interrupted and resumed trainings."""
    log = TrainingLog({}, {})
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a training that was killed, or is writing it
                continue
            if 'coco/bbox_mAP' in record or 'accuracy/top1' in record:
                log.val[record['step']] = record
            elif 'loss' in record:
                log.train[record['step']] = record
    return log


def metrics(record: dict) -> dict[str, float]:
    """Pick the metrics of a validation record.

    Args:
        record: Metrics as MMEngine logs them: ``coco/bbox_…`` from 0 to 1, ``accuracy/…`` in per cent.

    Returns:
        dict: Metrics from 0 to 1 by the names ``bbox_…`` and ``top…``.
    """
    boxes = {key.removeprefix('coco/'): value for key, value in record.items() if key.startswith('coco/')}
    return {**boxes, **{key.removeprefix('accuracy/'): value / 100
                        for key, value in record.items() if key.startswith('accuracy/')}}


def score(metrics: dict[str, float]) -> tuple[str, float]:
    """Return the name and the value of the metric that is compared."""
    return next((name, metrics[name]) for name in SCORES if name in metrics)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(json.dumps(content, indent=2) + '\n')
    partial.replace(path)
