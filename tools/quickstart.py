"""See distillation work in minutes: one teacher, and a student alone, with KD and with SHAKE.

Makes the digits detection set, trains, evaluates on its val images, prints a table, and writes
summary.json, curves.png and detections.png into the work directory. Run it again to go on where it
was interrupted; finished trainings are not repeated.
"""

import argparse
import fcntl
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import quickstart_report as qr

# Nothing but the standard library is imported up here, so that --help works before the set-up.

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs/quickstart'
IMAGES = dict(train=600, val=150, seed=0)
SMOKE_IMAGES = dict(train=24, val=8, seed=0)
# Seconds of an iteration relative to each other: only for the first guess of the time that is left.
COST = dict(teacher=1.2, student=1.0, kd=1.25, shake=1.35)
# Start-up, validation and checkpoints take about this much on top of the iterations.
OVERHEAD = 1.15


class StageError(Exception):
    """A stage cannot go on; the message says which and why."""


@dataclass(frozen=True)
class Stage:
    """One training: what it is, where it lies, how long it takes."""

    method: str
    seed: int
    work_dir: Path
    epochs: int
    iterations: int
    options: dict
    settings: dict

    @property
    def title(self):
        """Get the name that people read."""
        return f'{qr.TITLES[self.method]}, seed {self.seed}'

    @property
    def config(self):
        """Get the path of its config."""
        return CONFIGS / f'{self.method}.py'

    @property
    def checkpoint(self):
        """Get the path of what it ends with."""
        return self.work_dir / f'epoch_{self.epochs}.pth'

    @property
    def result(self):
        """Get the path of the mark that it is finished, which holds its metrics."""
        return self.work_dir / 'result.json'

    @property
    def finished(self):
        """Tell whether nothing is left to do."""
        return self.result.is_file()


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='bash tools/quickstart.sh', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=1, metavar='N',
                        help='train every method with the seeds 0 to N-1 (default: 1); more seeds '
                        'give a spread and an interval')
    parser.add_argument('--work-dir', type=Path, help='where all of it goes (work_dirs/quickstart)')
    parser.add_argument('--data', type=Path,
                        help='the digits detection set, made if missing (data/digits_det)')
    parser.add_argument('--smoke', action='store_true',
                        help='tiny run that only proves that the pipeline works; its figures mean '
                        'nothing')
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error('--seeds must be at least 1')
    suffix = '_smoke' if args.smoke else ''
    # Absolute, because the trainings run in the checkout and not where the user stands.
    args.work_dir = (args.work_dir or ROOT / f'work_dirs/quickstart{suffix}').resolve()
    args.data = (args.data or ROOT / f'data/digits_det{suffix}').resolve()
    return args


def plan(args, images):
    """List all trainings in the order in which they run: the teacher, then seed by seed."""
    teacher = make_stage('teacher', 0, args.work_dir / 'teacher', args, images)
    stages = [teacher]
    for seed in range(args.seeds):
        for method in qr.METHODS:
            work_dir = args.work_dir / f'{method}_seed{seed}'
            uses = None if method == 'student' else teacher
            stages.append(make_stage(method, seed, work_dir, args, images, uses))
    return stages


def make_stage(method, seed, work_dir, args, images, teacher=None):
    """Describe one training; ``teacher`` is the training that its teacher comes from."""
    from mmengine.config import Config
    # Without its imports: mmkd need not be loaded to read how long a training is.
    cfg = Config.fromfile(CONFIGS / f'{method}.py', import_custom_modules=False)
    options = data_options(args.data)
    options['randomness.seed'] = seed
    if args.smoke:
        options.update({'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    if teacher:
        options['model.teacher.checkpoint'] = teacher.checkpoint
    epochs = 1 if args.smoke else cfg.train_cfg.max_epochs
    settings = dict(
        method=method, seed=seed, epochs=epochs, images=images, config=digest(cfg.to_dict()))
    if teacher:
        settings['teacher'] = digest(teacher.settings)
    iterations = epochs * -(-images['train'] // cfg.train_dataloader.batch_size)
    return Stage(method, seed, work_dir, epochs, iterations, options, settings)


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
                         'delete it or choose another --work-dir.')


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
    run_tool(
        stage, lock, 'train.py', stage.config, '--work-dir', stage.work_dir, '--resume', show=show)
    train, val = qr.read_log(stage.work_dir)
    # Killed during its last validation, a run has nothing left to train and never repeats it.
    record = val.get(stage.epochs) or test(stage, lock)
    write_json(stage.result, dict(
        metrics=qr.bbox_metrics(record),
        seconds_per_iteration=statistics.median(entry['time'] for entry in train.values())))


def test(stage, lock):
    """Evaluate the last checkpoint of a stage and return its metrics."""
    work_dir = stage.work_dir / 'test'
    run_tool(stage, lock, 'test.py', stage.config, stage.checkpoint, '--work-dir', work_dir)
    return json.loads(max(work_dir.glob('*/*.json')).read_text())


def run_tool(stage, lock, tool, *arguments, show=lambda log: None):
    """Run one of the tools for a stage, its output into ``stdout.log``."""
    command = [sys.executable, ROOT / 'tools' / tool, *arguments, '--cfg-options',
               *(f'{key}={value}' for key, value in stage.options.items())]
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
        self.pace = None
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
        self.pace = seconds / COST[self.stage.method]
        left = (self.stage.iterations - done) * seconds * OVERHEAD
        later = sum(stage.iterations * COST[stage.method] * self.pace * OVERHEAD
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
        result = json.loads(stage.result.read_text())
        progress.finish(f'AP {100 * result["metrics"]["bbox_mAP"]:.1f} on val, '
                        f'{result["seconds_per_iteration"]:.2f} s per iteration')


def report(stages, args, settings):
    """Write and print what came out of the finished trainings."""
    runs = {method: [stage for stage in stages if stage.method == method]
            for method in ('teacher', *qr.METHODS)}
    results = {method: [json.loads(stage.result.read_text())['metrics'] for stage in of_method]
               for method, of_method in runs.items()}
    results['teacher'] = results['teacher'][0]
    summary = qr.summarise(results, list(range(args.seeds)), settings)
    write_json(args.work_dir / 'summary.json', summary)
    qr.plot_curves(args.work_dir / 'curves.png',
                   {method: [stage.work_dir for stage in runs[method]] for method in qr.METHODS})
    shown = dict(teacher='teacher', student='student alone', shake='SHAKE student')
    qr.plot_detections(
        args.work_dir / 'detections.png', args.data,
        [(title, CONFIGS / f'{"teacher" if method == "teacher" else "student"}.py',
          runs[method][0].checkpoint) for method, title in shown.items()],
        data_options(args.data))
    print(f'\n{qr.format_table(summary)}\n')
    print(f'Written to {args.work_dir}: summary.json, curves.png, detections.png')


def main():
    """Run everything that is left to do."""
    args = parse_args()
    start = time.monotonic()
    # As an exception, so that the running training is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from dataset_converters.digits_to_coco import make
    images = SMOKE_IMAGES if args.smoke else IMAGES
    args.work_dir.mkdir(parents=True, exist_ok=True)
    with (args.work_dir / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f'Another quickstart is at work in {args.work_dir}.')
        try:
            made = make(args.data, **images)
            print(f'Digits detection set {"made" if made else "found"}: {args.data}', flush=True)
            stages = plan(args, images)
            run_stages(stages, lock)
            report(stages, args, dict(images=images, epochs={s.method: s.epochs for s in stages}))
        except (StageError, FileExistsError) as error:
            sys.exit(f'\n{error}')
        except KeyboardInterrupt:
            sys.exit('\nInterrupted. Run the same command again to go on.')
    print(f'Took {clock(time.monotonic() - start)} minutes.')


if __name__ == '__main__':
    main()
