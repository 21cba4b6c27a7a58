"""Interrupt a training many times at random moments, and compare it with an undisturbed training.

python tests/soak.py --kills 20 --terms 10 --loop epoch --processes 1 --workers 2

A tiny detector is distilled with augmentation, validation, a moving average of its weights and gradient
accumulation that does not divide the epoch. Each interruption is a SIGKILL to all processes at once, or a
SIGTERM as a cluster sends it. Losses, metrics, weights, optimizer, moving average and random states must be
equal to the last bit. The script can be interrupted as well: it continues where it was. Exit status 0 means
equal.
"""
import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from glob import glob
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import mmkd  # noqa: E402, F401
from mmkd.checkpoints import latest_checkpoint, load_checkpoint  # noqa: E402
from tests.helpers.comparing import differences  # noqa: E402
from tests.helpers.tiny import build, distill, load_tool, tiny_config  # noqa: E402


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='number of SIGKILLs')
    parser.add_argument('--terms', type=int, default=0, help='number of SIGTERMs')
    parser.add_argument('--loop', choices=['epoch', 'iter'], default='epoch', help='training loop')
    parser.add_argument('--processes', type=int, default=1, help='training processes')
    parser.add_argument('--workers', type=int, default=2, help='workers of the data loader, per process')
    parser.add_argument('--updates', type=int, help='iterations (default: 12 per interruption)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments')
    parser.add_argument('--work-dir', help='folder (default: one for these settings, in the '
                        'folder for temporary files)')
    args = parser.parse_args(arguments)
    args.updates = args.updates or 12 * (args.kills + args.terms + 2)
    if args.work_dir is None:
        settings = args.loop, args.processes, args.workers, args.kills, args.terms
        args.work_dir = os.path.join(tempfile.gettempdir(), 'mmkd_soak', '_'.join(map(str, settings)))
    return args


def prepare(args: argparse.Namespace) -> str:
    """Write the data, a teacher and the config, if they do not exist; return the path of the config."""
    folder = Path(args.work_dir).resolve()
    path = folder / 'config.py'
    if path.exists():
        return str(path)
    folder.mkdir(parents=True, exist_ok=True)
    load_tool('dataset_converters/digits_to_coco.py').make(str(folder / 'digits'), train=44, val=8, seed=0)
    init_default_scope('mmdet')
    teacher = tiny_config('teacher', str(folder / 'digits'))
    teacher.dump(folder / 'teacher.py')
    torch.save(dict(meta=dict(dataset_meta=dict(classes=tuple('0123456789'))),
                    state_dict=build(teacher.model).state_dict()), folder / 'teacher.pth')
    cfg = tiny_config(data=str(folder / 'digits'))
    cfg.model = distill(cfg.model, str(folder / 'teacher.py'), str(folder / 'teacher.pth'),
                        shake=dict(type='mmkd.SHAKE'))
    pipeline = cfg.train_dataloader.dataset.pipeline
    next(step for step in pipeline if step.type == 'Resize').update(type='RandomResize', scale=[
        (96, 96), (160, 160)])
    pipeline.insert(-1, dict(type='RandomFlip', prob=0.5))
    cfg.train_dataloader.update(batch_size=4, num_workers=args.workers, persistent_workers=args.workers > 0)
    steps = -(-44 // args.processes) // 4 + 1
    if args.loop == 'epoch':
        cfg.train_cfg = dict(by_epoch=True, max_epochs=-(-args.updates // steps), val_interval=3)
    else:
        cfg.train_cfg = dict(by_epoch=False, max_iters=args.updates, val_interval=3 * steps)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.optim_wrapper.update(accumulative_counts=4, clip_grad=dict(max_norm=10))
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=50),
        dict(type='ReduceOnPlateauLR', monitor='coco/bbox_mAP', rule='greater', patience=1)]
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.01)]
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor = dict(window_size=1, by_epoch=args.loop == 'epoch')
    cfg.default_hooks.checkpoint.update(
        by_epoch=False, interval=5, max_keep_ckpts=2, save_best='coco/bbox_mAP', rule='greater')
    cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', evaluate=False)
    cfg.randomness = dict(seed=1)
    cfg.dump(path)
    return str(path)


class Training:
    """One start of ``tools/train.py``, with all its processes."""

    def __init__(self, config: str, work_dir: Path, processes: int) -> None:
        self.work_dir = work_dir
        self.files = set(glob(f'{work_dir}/*/vis_data/scalars.json'))
        work_dir.mkdir(exist_ok=True)
        tool = ['bash', 'tools/dist_train.sh', config, str(processes)]
        if processes == 1:
            tool = [sys.executable, 'tools/train.py', config]
        env = dict(os.environ, OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', MMKD_PYTHON=sys.executable,
                   PYTHONPATH=str(REPO), PORT=str(random.SystemRandom().randrange(20000, 60000)))
        with open(work_dir.with_suffix('.log'), 'ab') as log:
            self.process = subprocess.Popen(
                [*tool, '--work-dir', str(work_dir), '--resume'], cwd=REPO, env=env, stdout=log, stderr=log,
                start_new_session=True)

    def wait_for_iteration(self) -> bool:
        """Wait until an iteration is logged; return whether the processes still run."""
        while self.process.poll() is None:
            new = set(glob(f'{self.work_dir}/*/vis_data/scalars.json')) - self.files
            if any(os.path.getsize(path) for path in new):
                return True
            time.sleep(0.02)
        return False

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end or for a time; return whether the processes still run."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """Kill all processes; launchers first, so that they cannot react."""
        pids = [self.process.pid, *_descendants(self.process.pid)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.process.wait()
        while any(os.path.exists(f'/proc/{pid}') and _state(pid) != 'Z' for pid in pids):
            time.sleep(0.01)

    def terminate(self) -> None:
        """Ask the processes to end, as a cluster does, and kill them after two minutes."""
        self.process.send_signal(signal.SIGTERM)
        if self.wait(120):
            self.kill()


def _descendants(pid: int) -> list[int]:
    found = []
    for path in glob(f'/proc/{pid}/task/*/children'):
        try:
            children = [int(child) for child in Path(path).read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _state(pid: int) -> str:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except OSError:
        return 'Z'


def run_undisturbed(args: argparse.Namespace, config: str, work_dir: Path) -> float:
    """Train without interruption, unless that was done; return how long the iterations took, in seconds."""
    training_time = work_dir.with_suffix('.seconds')
    if not training_time.exists():
        training = Training(config, work_dir, args.processes)
        training.wait_for_iteration()
        start = time.time()
        training.wait()
        if training.process.returncode:
            sys.exit(f'the undisturbed training failed; see {work_dir}.log')
        training_time.write_text(str(time.time() - start))
    return float(training_time.read_text())


def interrupt(args: argparse.Namespace, config: str, work_dir: Path, seconds: float) -> dict[str, int]:
    """Train with interruptions until the end; return how many there were of each kind."""
    progress = work_dir.with_suffix('.json')
    done = json.loads(progress.read_text()) if progress.exists() else dict(kills=0, terms=0, finished=False)
    kinds = ['kills'] * args.kills + ['terms'] * args.terms
    random.Random(args.seed).shuffle(kinds)
    while not done['finished']:
        count = done['kills'] + done['terms']
        moments = random.Random(1000 * args.seed + count)
        training = Training(config, work_dir, args.processes)
        if count == len(kinds):
            training.wait()
        elif moments.random() < 0.1:  # while it starts
            training.wait(moments.uniform(0, 8))
        elif training.wait_for_iteration():
            training.wait(moments.uniform(0, 1.6 * seconds / (len(kinds) + 1)))
        if training.process.poll() is None:
            training.kill() if kinds[count] == 'kills' else training.terminate()
            done[kinds[count]] += 1
        elif training.process.returncode == 0:
            done['finished'] = True
        else:
            sys.exit(f'the training failed; see {work_dir}.log')
        progress.write_text(json.dumps(done))
        last = os.path.basename(latest_checkpoint(str(work_dir)) or 'no checkpoint')
        print(f'{count + 1:3d} {"ended" if done["finished"] else kinds[count]:6s} {last}', flush=True)
    return done


def logged(work_dir: Path) -> tuple[dict[str, list], int]:
    """Return all logged losses, learning rates and metrics by iteration, and how many lines repeat others."""
    values: dict[str, list] = {}
    repeated = 0
    for path in sorted(glob(f'{work_dir}/*/vis_data/scalars.json')):
        for line in Path(path).read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # cut off by a kill
                continue
            kind = 'train' if 'loss' in entry else 'val'
            number = entry.get('iter' if kind == 'train' else 'step')
            kept = {name: value for name, value in entry.items()
                    if name not in ('time', 'data_time', 'memory', 'eta')}
            entries = values.setdefault(f'{kind} {number}', [])
            repeated += bool(entries)
            if repr(kept) not in entries:
                entries.append(repr(kept))
    return values, repeated


def compare(one: Path, other: Path) -> int:
    """Print a table of what was compared; return the number of differences."""
    logs, repeated = logged(one)[0], logged(other)[1]
    interrupted = logged(other)[0]
    checkpoints = [load_checkpoint(latest_checkpoint(str(folder))) for folder in (one, other)]
    rows = dict(
        losses=differences(*({key: value for key, value in log.items() if key.startswith('train')}
                             for log in (logs, interrupted))),
        metrics=differences(*({key: value for key, value in log.items() if key.startswith('val')}
                              for log in (logs, interrupted))),
        files=differences(*([os.path.basename(path) for path in sorted(glob(f'{folder}/*.pth'))]
                            for folder in (one, other))))
    for name, key in dict(weights='state_dict', moving_average='ema_state_dict', optimizer='optimizer',
                          schedules='param_schedulers', random_states='mmkd_resume').items():
        rows[name] = differences(*(checkpoint[key] for checkpoint in checkpoints))
    # MMEngine sets the hub's `iter` to that of the next iteration when training begins, so it differs if the
    # last interruption came after the last iteration.
    rows['best'] = differences(*(dict(
        best_score=checkpoint['message_hub']['runtime_info'].get('best_score'),
        iter=checkpoint['meta']['iter'], epoch=checkpoint['meta']['epoch']) for checkpoint in checkpoints))
    print(f'{len(logs)} iterations and validations; {repeated} lines logged again after resuming')
    for name, different in rows.items():
        print(f'{name:15s} {"equal" if not different else "DIFFERENT: " + "; ".join(different[:3])}')
    return sum(map(len, rows.values()))


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    config = prepare(args)
    folder = Path(args.work_dir).resolve()
    seconds = run_undisturbed(args, config, folder / 'undisturbed')
    print(f'undisturbed: {seconds:.0f} s of iterations', flush=True)
    done = interrupt(args, config, folder / 'interrupted', seconds)
    print(f'interrupted by {done["kills"]} SIGKILLs and {done["terms"]} SIGTERMs')
    different = compare(folder / 'undisturbed', folder / 'interrupted')
    if done['kills'] + done['terms'] < args.kills + args.terms:
        print('the training ended before all interruptions; add --updates')
        return 2
    return int(different > 0)


if __name__ == '__main__':
    sys.exit(main())
