"""Several trainings in a row, in one command that can be interrupted and run again.

Shared by the quickstart and by analysis_tools/compare_methods.py. Nothing but the standard library is
imported up here, so that their --help works before the set-up.
"""

import fcntl
import functools
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import quickstart_report as qr

ROOT = Path(__file__).resolve().parent.parent
IMAGES = dict(train=600, val=150, seed=0)
SMOKE_IMAGES = dict(train=24, val=8, seed=0)
# Start-up, validation and checkpoints take about this much on top of the iterations.
OVERHEAD = 1.15


class StageError(Exception):
    """A stage cannot go on; the message says which and why."""


@dataclass(frozen=True)
class Stage:
    """One training: what it is, where it lies, how long it takes.

    Args:
        title (str): The name that people read.
        method (str): The name in results.
        seed (int): Its seed.
        config (Path): What ``tools/train.py`` and ``tools/test.py`` are given.
        work_dir (Path): Where it lies.
        epochs (int): Its length.
        iterations (int): The same in iterations.
        options (dict): Config options of both tools.
        settings (dict): All that its result depends on.
        cost (float): Seconds of an iteration, relative to other stages: only for the first guess of the
            time that is left.
        train (tuple): Further arguments of ``tools/train.py``.
        train_options (dict): Further config options of ``tools/train.py``.
        test (tuple): Further arguments of ``tools/test.py``.
        metric (str): What must be known of the last epoch; without it in the log, the last checkpoint is
            evaluated by ``tools/test.py``.
    """

    title: str
    method: str
    seed: int
    config: Path
    work_dir: Path
    epochs: int
    iterations: int
    options: dict
    settings: dict
    cost: float = 1.0
    train: tuple = ()
    train_options: dict = field(default_factory=dict)
    test: tuple = ()
    metric: str = 'coco/bbox_mAP'

    @property
    def checkpoint(self):
        """Get the path of what it ends with."""
        return self.work_dir / f'epoch_{self.epochs}.pth'

    @property
    def result_path(self):
        """Get the path of the mark that it is finished, which holds its result."""
        return self.work_dir / 'result.json'

    @property
    def finished(self):
        """Tell whether nothing is left to do."""
        return self.result_path.is_file()

    def result(self):
        """Read what came out of it."""
        return json.loads(self.result_path.read_text())


def make_stage(config, method, seed, work_dir, args, teacher=None, settings=None, options=None, **others):
    """Describe one training on the digits.

    Args:
        config (Path): Its config.
        method (str): See :class:`Stage`.
        seed (int): See :class:`Stage`.
        work_dir (Path): See :class:`Stage`.
        args (argparse.Namespace): With ``data`` and ``smoke``.
        teacher (Stage | None): The training that its teacher comes from.
        settings (dict | None): What its result depends on besides the config.
        options (dict | None): Config options besides those that all stages have.
        **others: Other fields of :class:`Stage`.

    Returns:
        Stage: The training.
    """
    max_epochs, batch_size, content = read_config(config)
    options = {**data_options(args.data), 'randomness.seed': seed, **(options or {})}
    if args.smoke:
        options.update({'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    epochs = 1 if args.smoke else max_epochs
    images = images_of(args)
    settings = dict(method=method, seed=seed, epochs=epochs, images=images, config=content,
                    **(settings or {}))
    if teacher:
        settings['teacher'] = digest(teacher.settings)
    iterations = epochs * -(-images['train'] // batch_size)
    return Stage(method=method, seed=seed, config=config, work_dir=work_dir, epochs=epochs,
                 iterations=iterations, options=options, settings=settings, **others)


@functools.lru_cache
def read_config(path):
    """Return a config's length in epochs, its batch size and a digest of all of it."""
    from mmengine.config import Config
    # Without its imports: mmkd need not be loaded to read how long a training is.
    cfg = Config.fromfile(path, import_custom_modules=False)
    return cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size, digest(cfg.to_dict())


def add_common_arguments(parser, seeds):
    """Add the options that the commands share.

    Args:
        parser (argparse.ArgumentParser): Parser of a command.
        seeds (int): How many seeds by default.
    """
    parser.add_argument('--seeds', type=int, default=seeds, metavar='N',
                        help='train every method with N seeds, from 0 on (default: %(default)s); more '
                        'seeds give a spread and an interval')
    parser.add_argument('--data', type=Path,
                        help='the digits detection set, made if missing (data/digits_det)')
    parser.add_argument('--smoke', action='store_true',
                        help='tiny run that only proves that the pipeline works; its figures mean '
                        'nothing')


def finish_arguments(parser, args, name):
    """Check the options that the commands share, and fill in where things lie.

    Args:
        parser (argparse.ArgumentParser): Parser of a command.
        args (argparse.Namespace): What it read; ``work_dir`` and ``data`` are set.
        name (str): The work directory's default name.
    """
    if args.seeds < 1:
        parser.error('--seeds must be at least 1')
    suffix = '_smoke' if args.smoke else ''
    # Absolute, because the trainings run in the checkout and not where the user stands.
    args.work_dir = (args.work_dir or ROOT / f'work_dirs/{name}{suffix}').resolve()
    args.data = (args.data or ROOT / f'data/digits_det{suffix}').resolve()


def images_of(args):
    """Return the settings of the digits detection set."""
    return SMOKE_IMAGES if args.smoke else IMAGES


def data_options(data):
    """Return the config options that point at a detection set."""
    options = {f'{split}_dataloader.dataset.data_root': f'{data}/'
               for split in ('train', 'val', 'test')}
    for split in ('val', 'test'):
        options[f'{split}_evaluator.ann_file'] = f'{data}/annotations/instances_val.json'
    return options


def digest(content):
    """Shorten settings to something that differs when they differ."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_settings(stage):
    """Refuse a work directory that was made with other settings, rather than mix or overwrite."""
    path = stage.work_dir / 'settings.json'
    if not path.is_file():
        return
    found = json.loads(path.read_text())
    changed = [key for key in stage.settings if found.get(key) != stage.settings[key]]
    if changed:
        raise StageError(f'{stage.work_dir} was made with other settings ({", ".join(changed)}); '
                         'delete it or choose another folder.')


def write_json(path, content):
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.unfinished')
    unfinished.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(unfinished, path)


def run_stage(stage, show, lock):
    """Train one stage from its last checkpoint to the end, and keep its metrics.

    Args:
        stage (Stage): The training.
        show (callable): Called with the training log about once a second.
        lock (file): Open lock file, which the training holds as long as it lives.

    Raises:
        StageError: If the training fails.
    """
    write_json(stage.work_dir / 'settings.json', stage.settings)
    run_tool(stage, lock, 'train.py',
             [stage.config, '--work-dir', stage.work_dir, '--resume', *stage.train],
             {**stage.options, **stage.train_options}, show)
    train, val = qr.read_log(stage.work_dir)
    record = val.get(stage.epochs, {})
    # Killed during its last validation, a run has nothing left to train and never repeats it.
    if stage.metric not in record:
        record = test(stage, lock)
    # Where nothing at all is detected, MMDetection logs no metrics.
    result = dict(metrics=qr.bbox_metrics(record) or dict(bbox_mAP=0.0, bbox_mAP_50=0.0),
                  seconds_per_iteration=statistics.median(entry['time'] for entry in train.values()))
    if 'gap/kl' in record:
        result['gap'] = dict(kl=record['gap/kl'], agreement=record['gap/agreement'])
    write_json(stage.result_path, result)


def test(stage, lock):
    """Evaluate the last checkpoint of a stage and return its metrics."""
    work_dir = stage.work_dir / 'test'
    run_tool(stage, lock, 'test.py',
             [stage.config, stage.checkpoint, '--work-dir', work_dir, *stage.test], stage.options)
    return json.loads(max(work_dir.glob('*/*.json')).read_text())


def run_tool(stage, lock, tool, arguments, options, show=lambda log: None):
    """Run one of the tools for a stage, its output into ``stdout.log``."""
    command = [sys.executable, ROOT / 'tools' / tool, *arguments, '--cfg-options',
               *(f'{key}={value}' for key, value in options.items())]
    # With the checkout in front, a working OpenMMLab environment needs no installed mmkd.
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    # Where cores are shared, threads that wait by spinning make a step several times slower.
    env = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    log = stage.work_dir / 'stdout.log'
    with log.open('a') as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=env,
            pass_fds=[lock.fileno()], start_new_session=True)
    try:
        while process.poll() is None:
            time.sleep(1)
            show(qr.read_log(stage.work_dir)[0])
    finally:
        if process.poll() is None:
            # With its data loading workers, which would hold the lock for some seconds more.
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if process.returncode:
        with log.open(errors='replace') as lines:
            tail = ''.join(deque(lines, 25))
        raise StageError(f'{tail}\n{stage.title}: tools/{tool} failed with exit status '
                         f'{process.returncode}; all of its output is in {log}. '
                         'Run the same command again to go on from its last checkpoint.')


class Progress:
    """One line for the running stage: how far, and how long still for it and for the whole run."""

    def __init__(self, stages):
        self.stages = stages
        self.shown = None

    def start(self, number, text):
        """Announce a stage."""
        self.number, self.stage = number, self.stages[number]
        self._print(text)

    def __call__(self, log):
        """Show how far the training log has come."""
        if not log:
            return
        done = max(log)
        seconds = statistics.median(record['time'] for record in log.values())
        pace = seconds / self.stage.cost
        left = (self.stage.iterations - done) * seconds * OVERHEAD
        later = sum(stage.iterations * stage.cost * pace * OVERHEAD
                    for stage in self.stages[self.number + 1:] if not stage.finished)
        self._print(f'iteration {done}/{self.stage.iterations}  loss {log[done]["loss"]:.3f}  '
                    f'left: stage {clock(left)}, all {clock(left + later)}')

    def _print(self, text):
        line = f'[{self.number + 1}/{len(self.stages)}] {self.stage.title}: {text}'
        if line != self.shown:
            terminal = sys.stdout.isatty()
            print(f'\r{line:100}' if terminal else line, end='' if terminal else '\n', flush=True)
            self.shown = line

    def finish(self, text):
        """End the line of a stage."""
        self._print(text)
        if sys.stdout.isatty():
            print(flush=True)


def clock(seconds):
    """Write a duration as minutes and seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def run_stages(stages, lock):
    """Run all trainings that are not finished."""
    for stage in stages:
        check_settings(stage)
    progress = Progress(stages)
    for number, stage in enumerate(stages):
        progress.start(number, 'done before' if stage.finished else 'starting')
        if not stage.finished:
            run_stage(stage, progress, lock)
        result = stage.result()
        progress.finish(f'AP {100 * result["metrics"]["bbox_mAP"]:.1f} on val, '
                        f'{result["seconds_per_iteration"]:.2f} s per iteration')


def run(args, plan, report):
    """Run all that is left to do, alone in the work directory.

    Args:
        args (argparse.Namespace): The command line, with ``work_dir``, ``data`` and ``smoke``.
        plan (callable): Called with ``args``; lists the stages in the order in which they run.
        report (callable): Called with the finished stages and ``args``.
    """
    start = time.monotonic()
    # As an exception, so that the running training is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from dataset_converters.digits_to_coco import make
    args.work_dir.mkdir(parents=True, exist_ok=True)
    with (args.work_dir / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f'Another run is at work in {args.work_dir}.')
        try:
            made = make(args.data, **images_of(args))
            print(f'Digits detection set {"made" if made else "found"}: {args.data}', flush=True)
            stages = plan(args)
            run_stages(stages, lock)
            report(stages, args)
        except (StageError, FileExistsError) as error:
            sys.exit(f'\n{error}')
        except KeyboardInterrupt:
            sys.exit('\nInterrupted. Run the same command again to go on.')
    print(f'Took {clock(time.monotonic() - start)} minutes.')
