"""Several trainings in a row, in one command that can be interrupted and run again.

Shared by the quickstart and by analysis_tools/compare_methods.py. Nothing but the standard library is
imported up here, so that their --help works before the set-up.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import quickstart_report as qr

ROOT = Path(__file__).resolve().parent.parent
# The sets that are drawn, not downloaded: how they are made, for real runs and for --smoke.
DIGITS = dict(
    digits_det=dict(
        maker='digits_to_coco', real=dict(train=600, val=150, seed=0), smoke=dict(train=24, val=8, seed=0)),
    digits_cls=dict(
        maker='digits_to_folders', real=dict(train=3000, val=2000, seed=0),
        smoke=dict(train=130, val=40, seed=0)))
# Of a set that is not drawn, --smoke takes as many images as this many batches hold.
SMOKE_BATCHES = 2
# Start-up, validation and checkpoints take about this much on top of the iterations.
OVERHEAD = 1.15


class StageError(Exception):
    """A stage cannot go on; the message says which and why."""


@dataclass(frozen=True)
class Session:
    """What the trainings of one command share.

    Args:
        lock (file): Open lock file, which every training holds as long as it lives.
        jobs (int): How many run at a time.
        first (int): How many wait for no other; in the beginning there are no more to share the cores.
        stop (threading.Event): Set when all of them shall end.
    """

    lock: object
    jobs: int = 1
    first: int = 1
    stop: threading.Event = field(default_factory=threading.Event)


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
        teacher (Stage | None): The training that must be finished first.
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
    teacher: 'Stage | None' = None

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


@dataclass(frozen=True)
class ConfigFacts:
    """What has to be known of a training config.

    Args:
        epochs (int): Its length.
        batch_size (int): Of one iteration.
        drop_last (bool): Whether a last batch that is not full is left out.
        metric (str): The score in its validation records.
        digits (str | None): Which of the drawn sets it uses, if any.
        teacher (str | None): The config of the teacher that it names.
        settings (dict): What it says of methods under ``comparison``.
        digest (str): Differs when anything in it differs.
    """

    epochs: int
    batch_size: int
    drop_last: bool
    metric: str
    digits: str | None
    teacher: str | None
    settings: dict
    digest: str


def read_config(path, options=()):
    """Return the facts of a config.

    Args:
        path (str or Path): The config.
        options (Sequence[str]): Config options ``KEY=VALUE`` that all trainings get.
    """
    return _read_config(str(path), tuple(options))


def load_config(path, options, **settings):
    """Load a config as the tools do, with config options."""
    from mmengine.config import Config
    try:
        cfg = Config.fromfile(path, **settings)
    except Exception as error:  # a config is Python, and may raise anything
        raise StageError(f'The config {path} cannot be read ({type(error).__name__}: {error}).') from error
    cfg.merge_from_dict(parse_options(options))
    return cfg


def parse_options(options):
    """Read options ``KEY=VALUE`` as the tools do; return values by keys with dots."""
    from mmengine.config import DictAction
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *options]).cfg_options


@functools.lru_cache
def _read_config(path, options):
    # Without its imports: mmkd need not be loaded to read how long a training is.
    cfg = load_config(path, options, import_custom_modules=False)
    if not (cfg.get('model') and cfg.get('train_dataloader') and cfg.get('train_cfg', {}).get('max_epochs')):
        raise StageError(f'{path} is no training config: it has no model, no train_dataloader or no '
                         'train_cfg.max_epochs.')
    loader = cfg.train_dataloader
    root = Path(loader.dataset.get('data_root') or '').name
    classifies = cfg.get('default_scope') == 'mmpretrain'
    return ConfigFacts(
        epochs=cfg.train_cfg.max_epochs,
        batch_size=loader.batch_size,
        drop_last=loader.get('drop_last', False),
        metric='accuracy/top1' if classifies else 'coco/bbox_mAP',
        digits=root if root in DIGITS else None,
        teacher=(cfg.get('teacher') or {}).get('config'),
        settings=cfg.get('comparison', {}),
        digest=digest(cfg.to_dict()))


def make_stage(config, method, seed, work_dir, args, teacher=None, settings=None, options=None, **others):
    """Describe one training.

    Args:
        config (Path): Its config.
        method (str): See :class:`Stage`.
        seed (int): See :class:`Stage`.
        work_dir (Path): See :class:`Stage`.
        args (argparse.Namespace): As of :func:`finish_arguments`.
        teacher (Stage | None): The training that its teacher comes from.
        settings (dict | None): What its result depends on besides the config.
        options (dict | None): Config options besides those that all stages have.
        **others: Other fields of :class:`Stage`.

    Returns:
        Stage: The training.
    """
    facts = read_config(config, args.cfg_options)
    options = {**dict(option.split('=', 1) for option in args.cfg_options), **data_options(facts, args),
               'randomness.seed': seed, **(options or {})}
    if args.smoke:
        options.update({'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    epochs = 1 if args.smoke else facts.epochs
    images = images_of(facts, args)
    settings = dict(method=method, seed=seed, epochs=epochs, images=images, config=facts.digest,
                    **(settings or {}))
    if teacher:
        settings['teacher'] = digest(teacher.settings)
    if images:
        number = images['train']
    else:
        number = SMOKE_BATCHES * facts.batch_size if args.smoke else number_of_images(config, args)
    rounded = number // facts.batch_size if facts.drop_last else -(-number // facts.batch_size)
    return Stage(**{**dict(method=method, seed=seed, config=Path(config), work_dir=work_dir, epochs=epochs,
                           iterations=epochs * rounded, options=options, settings=settings, teacher=teacher,
                           metric=facts.metric), **others})


def number_of_images(config, args):
    """Count the training images of a config whose data are not drawn here."""
    return _count_images(str(config), tuple(args.cfg_options))


@functools.lru_cache
def _count_images(config, options):
    from mmengine.registry import DATASETS, init_default_scope
    cfg = load_config(config, options)
    init_default_scope(cfg.default_scope)
    return len(DATASETS.build(cfg.train_dataloader.dataset))


def add_common_arguments(parser, seeds, jobs=1):
    """Add the options that the commands share.

    Args:
        parser (argparse.ArgumentParser): Parser of a command.
        seeds (int | str): How many seeds by default; a text describes a default that the command fills in.
        jobs (int | str): How many trainings at a time by default; the same.
    """
    def count(*names, default, text):
        described = isinstance(default, str)
        parser.add_argument(*names, type=int, metavar='N', default=None if described else default,
                            help=f'{text} (default: {default})')

    count('--seeds', default=seeds, text='train every method with N seeds, from 0 on; more seeds give a '
          'spread and an interval')
    count('--jobs', default=jobs, text='how many trainings run at a time, and share the cores')
    parser.add_argument('--data', type=Path,
                        help='folder of the digits, made if missing (data/digits_det, data/digits_cls)')
    parser.add_argument('--smoke', action='store_true',
                        help='tiny run that only proves that the pipeline works; its figures mean '
                        'nothing')


def finish_arguments(parser, args, name):
    """Check the options that the commands share, and fill in where things lie.

    Args:
        parser (argparse.ArgumentParser): Parser of a command.
        args (argparse.Namespace): What it read; ``work_dir``, ``data`` and ``cfg_options`` are set.
        name (str): The work directory's default name.
    """
    for option in ('seeds', 'jobs'):
        if getattr(args, option) < 1:
            parser.error(f'--{option} must be at least 1')
    suffix = '_smoke' if args.smoke else ''
    # Absolute, because the trainings run in the checkout and not where the user stands.
    args.work_dir = (args.work_dir or ROOT / f'work_dirs/{name}{suffix}').resolve()
    args.data = args.data and args.data.resolve()
    args.cfg_options = getattr(args, 'cfg_options', None) or []


def digits_folder(name, args):
    """Return where one of the drawn sets lies."""
    return args.data or ROOT / f'data/{name}{"_smoke" if args.smoke else ""}'


def images_of(facts, args):
    """Return how the drawn set that a config uses is made, or nothing."""
    return DIGITS[facts.digits]['smoke' if args.smoke else 'real'] if facts.digits else {}


def data_options(facts, args):
    """Return the config options that point at a config's data."""
    splits = ('train', 'val', 'test')
    if not facts.digits:
        number = SMOKE_BATCHES * facts.batch_size
        return {f'{split}_dataloader.dataset.indices': number for split in splits} if args.smoke else {}
    data = digits_folder(facts.digits, args)
    options = {f'{split}_dataloader.dataset.data_root': f'{data}/' for split in splits}
    if facts.metric == 'coco/bbox_mAP':
        for split in ('val', 'test'):
            options[f'{split}_evaluator.ann_file'] = f'{data}/annotations/instances_val.json'
    return options


def make_digits(configs, args):
    """Draw the sets that some configs use, where they are missing."""
    names = dict.fromkeys(read_config(config, args.cfg_options).digits for config in configs)
    if args.data and len(names) > 1:
        raise StageError('--data is one folder, but the configs use several sets.')
    for name in filter(None, names):
        make = import_module(f'dataset_converters.{DIGITS[name]["maker"]}').make
        folder = digits_folder(name, args)
        made = make(folder, **DIGITS[name]['smoke' if args.smoke else 'real'])
        print(f'Digits {"made" if made else "found"}: {folder}', flush=True)


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


def run_stage(stage, show, session):
    """Train one stage from its last checkpoint to the end, and keep its metrics.

    Args:
        stage (Stage): The training.
        show (callable): Called with the training log about once a second.
        session (Session): What it shares with the others.

    Raises:
        StageError: If the training fails.
    """
    write_json(stage.work_dir / 'settings.json', stage.settings)
    run_tool(stage, session, 'train.py',
             [stage.config, '--work-dir', stage.work_dir, '--resume', *stage.train],
             {**stage.options, **stage.train_options}, show)
    train, val = qr.read_log(stage.work_dir)
    record = val.get(stage.epochs, {})
    # Killed during its last validation, a run has nothing left to train and never repeats it.
    if stage.metric not in record:
        record = test(stage, session)
    # Where nothing at all is detected, MMDetection logs no metrics.
    result = dict(metrics=qr.metrics(record) or dict(bbox_mAP=0.0, bbox_mAP_50=0.0),
                  seconds_per_iteration=statistics.median(entry['time'] for entry in train.values()))
    if 'gap/kl' in record:
        result['gap'] = dict(kl=record['gap/kl'], agreement=record['gap/agreement'])
    write_json(stage.result_path, result)


def test(stage, session):
    """Evaluate the last checkpoint of a stage and return its metrics."""
    work_dir = stage.work_dir / 'test'
    run_tool(stage, session, 'test.py',
             [stage.config, stage.checkpoint, '--work-dir', work_dir, *stage.test], stage.options)
    return json.loads(max(work_dir.glob('*/*.json')).read_text())


def run_tool(stage, session, tool, arguments, options, show=lambda log: None):
    """Run one of the tools for a stage, its output into ``stdout.log``."""
    command = [sys.executable, ROOT / 'tools' / tool, *arguments, '--cfg-options',
               *(f'{key}={value}' for key, value in options.items())]
    # With the checkout in front, a working OpenMMLab environment needs no installed mmkd.
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    # Where cores are shared, threads that wait by spinning make a step several times slower.
    env = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    if session.jobs > 1:
        together = session.jobs if stage.teacher else min(session.jobs, session.first)
        env['OMP_NUM_THREADS'] = str(max(len(os.sched_getaffinity(0)) // together, 1))
    log = stage.work_dir / 'stdout.log'
    with log.open('a') as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=env,
            pass_fds=[session.lock.fileno()], start_new_session=True)
    try:
        while process.poll() is None:
            if session.stop.wait(1):
                raise StageError(f'{stage.title}: stopped.')
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
    """How far the running trainings are, and how long still for them and for the whole run.

    With one training at a time this is one line that is written anew; with several, a line now and then.
    """

    def __init__(self, stages, jobs=1):
        self.stages = stages
        self.jobs = jobs
        self.left = {}
        self.shown, self.when = None, 0.0

    def start(self, number, text):
        """Announce a stage."""
        self.left[number] = 0.0
        self._print(number, text)

    def update(self, number, log):
        """Show how far the training log of a stage has come."""
        if not log or (self.jobs > 1 and time.monotonic() - self.when < 10):
            return
        stage, done = self.stages[number], max(log)
        seconds = statistics.median(record['time'] for record in log.values())
        pace = seconds / stage.cost
        left = self.left[number] = (stage.iterations - done) * seconds * OVERHEAD
        waiting = [other for place, other in enumerate(self.stages)
                   if place not in self.left and not other.finished]
        later = sum(other.iterations * other.cost * pace * OVERHEAD for other in waiting)
        everything = max(left, (sum(self.left.values()) + later) / self.jobs)
        self._print(number, f'iteration {done}/{stage.iterations}  loss {log[done]["loss"]:.3f}  '
                    f'left: stage {clock(left)}, all {clock(everything)}')

    def finish(self, number, text):
        """End the line of a stage."""
        self.left[number] = 0.0
        self._print(number, text)
        if self._overwrites:
            print(flush=True)

    @property
    def _overwrites(self):
        return self.jobs == 1 and sys.stdout.isatty()

    def _print(self, number, text):
        line = f'[{number + 1}/{len(self.stages)}] {self.stages[number].title}: {text}'
        if line != self.shown:
            print(f'\r{line:100}' if self._overwrites else line, end='' if self._overwrites else '\n',
                  flush=True)
            self.shown, self.when = line, time.monotonic()


def clock(seconds):
    """Write a duration as minutes and seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def run_stages(stages, session):
    """Run all trainings that are not finished, a teacher before its students."""
    for stage in stages:
        check_settings(stage)
    progress = Progress(stages, session.jobs)
    if session.jobs == 1:
        for number in range(len(stages)):
            _run_one(number, stages, progress, session)
        return
    with ThreadPoolExecutor(session.jobs) as pool:
        # In the order of the list, so that a teacher never waits for its students.
        futures = {}
        for number, stage in enumerate(stages):
            teacher = futures.get(id(stage.teacher))
            futures[id(stage)] = pool.submit(_run_one, number, stages, progress, session, teacher)
        try:
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:
            session.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _run_one(number, stages, progress, session, teacher=None):
    if teacher:
        teacher.result()
    stage = stages[number]
    progress.start(number, 'done before' if stage.finished else 'starting')
    if not stage.finished:
        run_stage(stage, functools.partial(progress.update, number), session)
    result = stage.result()
    name, score = qr.score(result['metrics'])
    progress.finish(number, f'{qr.SCORES[name]} {100 * score:.1f} on val, '
                    f'{result["seconds_per_iteration"]:.2f} s per iteration')


def run(args, configs, plan, report):
    """Run all that is left to do, alone in the work directory.

    Args:
        args (argparse.Namespace): The command line, as of :func:`finish_arguments`.
        configs (Sequence[Path]): The configs whose data are drawn where they are missing.
        plan (callable): Called with ``args``; lists the stages in the order in which they run.
        report (callable): Called with the finished stages and ``args``.
    """
    start = time.monotonic()
    # As an exception, so that the running training is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # As the trainings, for which teachers and data are named relative to the checkout.
    os.chdir(ROOT)
    try:
        args.work_dir.mkdir(parents=True, exist_ok=True)
        lock_file = (args.work_dir / '.lock').open('w')
    except OSError as error:
        sys.exit(f'The output folder {args.work_dir} cannot be written: {error.strerror}.')
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f'Another run is at work in {args.work_dir}.')
        try:
            make_digits(configs, args)
            stages = plan(args)
            first = sum(stage.teacher is None for stage in stages)
            run_stages(stages, Session(lock, args.jobs, first))
            report(stages, args)
        except (StageError, FileExistsError) as error:
            sys.exit(f'\n{error}')
        except KeyboardInterrupt:
            sys.exit('\nInterrupted. Run the same command again to go on.')
    print(f'Took {clock(time.monotonic() - start)} minutes.')
