"""Successive halving over the weights of a method: short trainings, and longer ones of the better half."""
import math
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.config import Config

from ..errors import MMKDError
from .report import print_markdown
from .runs import SCORES, Run, RunQueue, score, write_json
from .training_config import TrainingConfig, load_config, make_digits, read_training_config

STUDENT = 'student'
"""The candidate without distillation, which takes part in all rounds."""
_COUNTED = ('begin', 'end', 'milestones', 'T_max', 'step_size', 'total_iters')
"""Settings of parameter schedulers that are numbers of epochs or iterations."""


@dataclass(frozen=True)
class WeightSearch:
    """What is searched, and where the trainings go.

    Args:
        config: The training config of a student; it names a teacher unless ``teacher`` does.
        method: The name of the method, in lower case.
        weights: Weights to try.
        shares: Shares of a balanced gradient to try, see docs/balance.md.
        work_dir: Folder of all trainings.
        teacher: The teacher's config and checkpoint.
        seeds: Seeds of every training; results are averaged over them.
        rounds: Number of rounds. The last one has full trainings, and every other half as many epochs as the
            next one.
        cfg_options: Config options ``KEY=VALUE`` of all trainings.
        jobs: Number of trainings at a time.
    """

    config: str
    method: str
    weights: tuple[float, ...]
    shares: tuple[float, ...]
    work_dir: Path
    teacher: tuple[str, str] | None = None
    seeds: tuple[int, ...] = (100, )
    rounds: int = 3
    cfg_options: tuple[str, ...] = ()
    jobs: int = 1

    @cached_property
    def training(self) -> TrainingConfig:
        """The facts of the training config."""
        return read_training_config(self.config, self.cfg_options)

    @cached_property
    def candidates(self) -> dict[str, dict[str, object]]:
        """The settings of the method by the name of the candidate."""
        prefix = f'model.methods.{self.method}'
        candidates: dict[str, dict[str, object]] = {'default': {}}
        for weight in self.weights:
            candidates[f'weight={weight:g}'] = {f'{prefix}.weight': weight, f'{prefix}.balance': 'none'}
        for share in self.shares:
            candidates[f'share={share:g}'] = {f'{prefix}.share': share, f'{prefix}.balance': 'gradient'}
        return {**candidates, STUDENT: {}}  # the student last, so that a mistake in a setting shows at once

    def epochs(self, number: int) -> int:
        """Return the length of the trainings of a round, which are numbered from 0."""
        return max(1, round(self.training.epochs / 2**(self.rounds - 1 - number)))

    def runs(self, number: int, names: Sequence[str]) -> list[Run]:
        """List the trainings of a round.

        Args:
            number: The number of the round, from 0.
            names: The names of the candidates that are left.
        """
        epochs = self.epochs(number)
        training = self.training
        options = {**training.options, 'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': 10**6,
                   **shortened_schedules(load_config(self.config, self.cfg_options), epochs)}
        arguments: tuple[object, ...] = ('--distill', self.method)
        if self.teacher:
            arguments += ('--teacher', self.teacher[0], '--teacher-checkpoint', self.teacher[1])
        runs = []
        for seed in self.seeds:
            for name in names:
                distills = name != STUDENT
                settings = dict(config=training.digest, seed=seed, epochs=epochs, method=self.method,
                                teacher=self.teacher and list(self.teacher), candidate=self.candidates[name])
                runs.append(Run(
                    title=f'{epochs} epochs, {name}, seed {seed}', method=name, seed=seed,
                    config=self.config, epochs=epochs, metric=training.metric, settings=settings,
                    work_dir=self.work_dir / f'round{number + 1}' / f'{name.replace("=", "_")}_seed{seed}',
                    iterations=math.ceil(training.iterations * epochs / training.epochs),
                    options={**options, 'randomness.seed': seed},
                    train_arguments=arguments if distills else (),
                    train_options=self._train_options(name) if distills else {}))
        return runs

    def _train_options(self, name: str) -> dict[str, object]:
        return {'default_hooks.teacher_check.evaluate': False, **self.candidates[name]}


def shortened_schedules(cfg: Config, epochs: int) -> dict[str, object]:
    """Return config options that shorten the parameter schedulers of a training.

    Args:
        cfg: The training config.
        epochs: The length of the shorter training.
    """
    share = epochs / cfg.train_cfg.max_epochs
    options: dict[str, object] = {}
    schedulers = cfg.get('param_scheduler') or []
    for index, scheduler in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
        prefix = f'param_scheduler.{index}' if isinstance(schedulers, list) else 'param_scheduler'
        for key in _COUNTED:
            value = scheduler.get(key)
            if isinstance(value, (list, tuple)):
                options[f'{prefix}.{key}'] = [max(1, round(share * number)) for number in value]
            elif isinstance(value, int) and value > 0:
                options[f'{prefix}.{key}'] = max(1, round(share * value))
    return options


def better_half(scores: dict[str, float]) -> list[str]:
    """Return the names of the better half of the candidates, best first, always with the student alone."""
    names = sorted((name for name in scores if name != STUDENT), key=lambda name: scores[name], reverse=True)
    return [*names[:math.ceil(len(names) / 2)], STUDENT]


def search(plan: WeightSearch) -> None:
    """Run everything of a search that is left to do, and write ``search.md`` and ``search.json``.

    Args:
        plan: What is searched.

    Raises:
        MMKDError: If a training fails.
        SystemExit: If it is interrupted.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trainings are stopped too
    rounds: list[dict[str, float]] = []
    names = list(plan.candidates)
    try:
        plan.work_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(plan.work_dir / '.lock', timeout=0):
            make_digits([plan.training])
            for number in range(plan.rounds):
                runs = plan.runs(number, names)
                RunQueue(runs, plan.jobs).run()
                rounds.append(_scores(runs))
                names = better_half(rounds[-1])
    except Timeout:
        raise MMKDError(f'Another search is running in {plan.work_dir}.') from None
    except OSError as error:
        raise MMKDError(f'The folder {os.fspath(plan.work_dir)!r} cannot be written: '
                        f'{error.strerror}.') from None
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. Run the same command again to go on.')
    text = report(plan, rounds)
    write_json(plan.work_dir / 'search.json', dict(
        method=plan.method, seeds=plan.seeds, epochs=[plan.epochs(number) for number in range(plan.rounds)],
        candidates=plan.candidates, rounds=rounds))
    (plan.work_dir / 'search.md').write_text(text)
    print_markdown(text)


def report(plan: WeightSearch, rounds: Sequence[dict[str, float]]) -> str:
    """Return a table of the scores of all candidates in all rounds, and the best settings, in Markdown.

    Args:
        plan: What is searched.
        rounds: For every round, the scores from 0 to 1 by the name of the candidate.
    """
    metric = SCORES['top1' if plan.training.metric == 'accuracy/top1' else 'bbox_mAP']
    head = [f'{metric} after {plan.epochs(number)} epochs' for number in range(len(rounds))]
    lines = [f'| {plan.method} | {" | ".join(head)} |', '|---' * (len(head) + 1) + '|']
    order = sorted(plan.candidates, key=lambda name: [scores.get(name, -1.0) for scores in reversed(rounds)],
                   reverse=True)
    for name in order:
        cells = [f'{100 * scores[name]:.1f}' if name in scores else '' for scores in rounds]
        lines.append(f'| {"student alone" if name == STUDENT else name} | {" | ".join(cells)} |')
    best = next(name for name in order if name != STUDENT)
    options = ' '.join(f'{key}={value}' for key, value in plan.candidates[best].items())
    lines += ['', f'Best: {best}' + (f', which is `--cfg-options {options}`.' if options else ' settings.')]
    if rounds[-1][best] <= rounds[-1][STUDENT]:
        lines.append('It is not better than the student alone.')
    seeds = ', '.join(map(str, plan.seeds))
    lines.append(f'Seeds: {seeds}. Differences within the spread of seeds mean nothing; report results on '
                 'other seeds than these.')
    return '\n'.join(lines) + '\n'


def _scores(runs: Sequence[Run]) -> dict[str, float]:
    """Return the mean score of every candidate over the seeds."""
    by_name: dict[str, list[float]] = {}
    for run in runs:
        by_name.setdefault(run.method, []).append(score(run.result()['metrics'])[1])
    return {name: sum(values) / len(values) for name, values in by_name.items()}
