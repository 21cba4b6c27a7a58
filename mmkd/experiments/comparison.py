"""Comparisons of methods: a teacher, a student alone, and the same student with every method.

A *pair* is the training config of a student that names its teacher's config: ``teacher=dict(config=...)``.
Settings of methods that suit the pair may be given under ``comparison``. All students of a pair have the same
initialization, batches, updates and learning rates.
"""
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mmdet
import torch
from filelock import FileLock, Timeout
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope

from ..apis import compose_distillation, prepare_config
from ..apis.config import model_config
from ..cli import merge_options, parse_options
from ..engine.hooks.method_hooks import check_first_phases
from ..errors import MMKDError
from .method_names import check_methods, method_settings, method_title
from .progress import duration
from .report import markdown, pair_title, print_markdown, summarize
from .runs import Run, RunQueue, read_log, write_json
from .training_config import (
    TrainingConfig,
    digest,
    load_config,
    make_digits,
    read_training_config,
)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where the trainings go.

    Args:
        pairs: Configs of students: paths, or names ``mmkd::…``.
        methods: Names of methods, see :mod:`.method_names`; the first is ``'student'``.
        seeds: Seeds of the students; the teacher has seed 0.
        work_dir: Folder of all trainings.
        command: The command that repeats the comparison.
        data: Folder of the digits, if not the default.
        cfg_options: Config options ``KEY=VALUE`` of all trainings, teachers included.
        jobs: Number of trainings at a time.
        smoke: Whether to make a tiny run, which only proves that the pipeline works.
        pictures: Whether to draw learning curves, for which students are evaluated as often as their config
            says, and detections. Otherwise students are evaluated after the last epoch only.
        pair_folders: Whether every pair has a folder in the work directory.
        report_only: Whether to report what is finished without training anything, even while another process
            trains.
    """

    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    work_dir: Path
    command: str
    data: Path | None = None
    cfg_options: tuple[str, ...] = ()
    jobs: int = 1
    smoke: bool = False
    pictures: bool = False
    pair_folders: bool = True
    report_only: bool = False

    @cached_property
    def configs(self) -> dict[str, TrainingConfig]:
        """The facts of every pair's config, by the pair's name."""
        return {pair_name(pair): self._read(pair) for pair in self.pairs}

    def folder(self, pair: str) -> Path:
        """Return the folder of a pair's trainings and pictures."""
        return self.work_dir / pair if self.pair_folders else self.work_dir

    def plan(self) -> list[Run]:
        """List all trainings in the order in which they run: the teachers, then seed by seed.

        So a table of the finished trainings compares all methods on nearly the same seeds.

        Raises:
            MMKDError: If a method does not exist, or a pair cannot be trained.
        """
        check_methods(self.methods)
        teachers = {pair: self._teacher_run(pair, config) for pair, config in self.configs.items()}
        return [*teachers.values(),
                *(self._student_run(pair, config, method, seed, teachers[pair])
                  for seed in self.seeds for pair, config in self.configs.items() for method in self.methods)]

    def check_students(self, runs: Sequence[Run]) -> None:
        """Build every student that is not trained yet with its methods and a teacher without weights.

        Args:
            runs: All trainings, see :meth:`plan`.

        Raises:
            MMKDError: If they do not fit; a training would say so after hours.
        """
        MMLogger.get_instance('compare_methods').setLevel('WARNING')
        for run in runs:
            if run.train_arguments and run.seed == self.seeds[0] and not run.finished:
                _check_student(run)

    def write_report(self, runs: Sequence[Run]) -> str:
        """Write what came out of the finished trainings, and return the tables."""
        results: dict[str, dict[str, dict[int, dict]]] = {pair: {} for pair in self.configs}
        iterations: dict[str, dict[str, int]] = {pair: {} for pair in self.configs}
        for run in runs:
            pair = str(run.settings['pair'])
            iterations[pair]['students' if run.teacher else 'teacher'] = run.iterations
            if run.finished:
                results[pair].setdefault(run.method, {})[run.seed] = run.result()
        settings = dict(
            images={pair: config.images for pair, config in self.configs.items()},
            methods={pair: config.settings for pair, config in self.configs.items()}, iterations=iterations)
        summary = summarize(results, self.seeds, self.command, settings, environment())
        write_json(self.work_dir / 'comparison.json', summary)
        text = markdown(summary)
        (self.work_dir / 'comparison.md').write_text(text)
        return text

    def print_report(self, runs: Sequence[Run]) -> None:
        """Write and print what came out of the finished trainings."""
        print_markdown(self.write_report(runs))
        written = [self.work_dir / 'comparison.json', self.work_dir / 'comparison.md']
        if self.pictures and all(run.finished for run in runs):
            written += [path for pair in self.configs for path in self.draw_pictures(pair, runs)]
        finished = sum(run.finished for run in runs)
        print(f'{finished} of {len(runs)} trainings are finished. Written:',
              *(path.relative_to(self.work_dir) for path in written), f'in {self.work_dir}')

    def draw_pictures(self, pair: str, runs: Sequence[Run]) -> list[Path]:
        """Draw the learning curves of a pair and, for detectors, detections; return the files' paths."""
        from .pictures import draw_detections, plot_curves  # the other parts need no matplotlib
        config, folder = self.configs[pair], self.folder(pair)
        by_method: dict[str, list[Run]] = {}
        for run in runs:
            if run.settings['pair'] == pair:
                by_method.setdefault(run.method, []).append(run)
        teacher = by_method.pop('teacher')[0]
        curves, detections = folder / 'curves.png', folder / 'detections.png'
        plot_curves(curves, {method: [read_log(run.work_dir) for run in of_method]
                             for method, of_method in by_method.items()})
        if config.metric != 'coco/bbox_mAP':
            return [curves]
        students = {method_title(name): by_method[name][0] for name in (self.methods[0], self.methods[-1])}
        draw_detections(
            detections, [(title.replace('†', ''), run.config, run.checkpoint)
                         for title, run in dict(teacher=teacher, **students).items()],
            parse_options(f'{key}={value}' for key, value in config.options.items()))
        return [curves, detections]

    def _read(self, config: str) -> TrainingConfig:
        return read_training_config(config, self.cfg_options, self.data, self.smoke)

    def _teacher_run(self, pair: str, config: TrainingConfig) -> Run:
        if not config.teacher:
            raise MMKDError(f'{config.path} names no teacher; add '
                            'teacher=dict(config=…, checkpoint=…) to it.')
        if '::' not in config.teacher and not Path(config.teacher).is_file():
            raise MMKDError(f'{config.path} names the teacher {config.teacher}, which does not exist here; '
                            'name it by an absolute path.')
        return self._run(
            pair, self._read(config.teacher), 'teacher', 0, title=f'{pair_title(pair)}, teacher, seed 0',
            work_dir=self.folder(pair) / 'teacher')

    def _student_run(self, pair: str, config: TrainingConfig, method: str, seed: int, teacher: Run) -> Run:
        from_teacher = ('--teacher', teacher.config, '--teacher-checkpoint', teacher.checkpoint)
        fields: dict = dict(
            title=f'{pair_title(pair)}, {method_title(method)}, seed {seed}',
            work_dir=self.folder(pair) / re.sub(r'[:=]', '-', f'{method}_seed{seed}'),
            # A student alone has no teacher while it trains: the gap to the teacher is measured afterwards.
            metric='gap/kl', test_arguments=from_teacher, teacher=teacher)
        settings = {}
        if method != 'student':
            presets = method_settings(method, config.settings, self.smoke)
            settings['method_settings'] = presets
            fields['train_arguments'] = ('--distill', *presets, *from_teacher)
            fields['train_options'] = {
                'default_hooks.teacher_check.evaluate': False,
                'default_hooks.teacher_gap.type': 'mmkd.TeacherGapHook',
                **_flat('model.methods', presets)}
        return self._run(pair, config, method, seed, settings, **fields)

    def _run(self, pair: str, config: TrainingConfig, method: str, seed: int, settings: dict | None = None,
             teacher: Run | None = None, **fields) -> Run:
        options = {**config.options, 'randomness.seed': seed}
        if not self.pictures and not self.smoke:
            options['train_cfg.val_interval'] = 1000  # MMEngine always evaluates the last epoch
        settings = dict(method=method, seed=seed, epochs=config.epochs, images=config.images,
                        config=config.digest, pair=pair, **(settings or {}))
        if teacher:
            settings['teacher'] = digest(teacher.settings)
        return Run(**{**dict(
            method=method, seed=seed, config=config.path, epochs=config.epochs, iterations=config.iterations,
            options=options, settings=settings, metric=config.metric, teacher=teacher), **fields})


def compare(comparison: Comparison) -> None:
    """Run everything of a comparison that is left to do, and report after every training.

    Args:
        comparison: What to compare.

    Raises:
        MMKDError: If something does not fit, or a training fails.
        SystemExit: If it is interrupted.
    """
    start = time.monotonic()
    # As an exception, so that the trainings are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if comparison.report_only:
        report(comparison)
        return
    try:
        comparison.work_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(comparison.work_dir / '.lock', timeout=0):
            make_digits(comparison.configs.values())
            runs = comparison.plan()
            comparison.check_students(runs)
            try:
                RunQueue(runs, comparison.jobs).run(lambda: comparison.write_report(runs))
            finally:
                comparison.print_report(runs)
    except Timeout:
        raise MMKDError(f'Another comparison is running in {comparison.work_dir}.') from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise MMKDError(
            f'The output folder {comparison.work_dir} cannot be written: {error.strerror}.') from None
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. Run the same command again to go on.')
    print(f'Took {duration(time.monotonic() - start)} minutes.')


def report(comparison: Comparison) -> None:
    """Report what is finished of a comparison.

    Raises:
        MMKDError: If trainings were made with other settings.
    """
    runs = comparison.plan()
    for run in runs:
        run.check_settings()
    comparison.print_report(runs)


def work_dir_of(folder: Path | None, default: str, smoke: bool) -> Path:
    """Return the absolute path of a work directory, by default in ``work_dirs/``."""
    return (folder or Path(f'work_dirs/{default}{"_smoke" if smoke else ""}')).resolve()


def find_pair(pair: str) -> str:
    """Return the name of a pair's config: its path, or ``mmkd::…`` as it is.

    Raises:
        MMKDError: If the file does not exist.
    """
    if '::' not in pair and not Path(pair).is_file():
        raise MMKDError(f'There is no config {pair!r}.')
    return pair


def pair_name(pair: str) -> str:
    """Return the name of a pair in results."""
    return Path(pair).stem.removesuffix('_student')


def environment() -> dict[str, object]:
    """Return what step times depend on."""
    versions = dict(python=platform.python_version(), torch=torch.__version__, mmdet=mmdet.__version__)
    try:
        import mmpretrain
        versions['mmpretrain'] = mmpretrain.__version__
    except ImportError:  # detectors do not need it
        pass
    return dict(versions, device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU',
                cores=len(os.sched_getaffinity(0)))


def _check_student(run: Run) -> None:
    cfg = load_config(run.config)
    presets: dict = run.settings['method_settings']
    options = {**run.options, **run.train_options}
    try:
        compose_distillation(cfg, list(presets), teacher_checkpoint='random')
        merge_options(cfg, parse_options(f'{key}={value}' for key, value in options.items()))
        prepare_config(cfg)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(model_config(cfg))
        check_first_phases(model.mmkd.methods, cfg.train_cfg.max_epochs)
    except MMKDError as error:
        raise MMKDError(f'{run.title}: {error}') from error


def _flat(prefix: str, settings: dict) -> dict[str, object]:
    """Return nested settings as config options."""
    options: dict[str, object] = {}
    for key, value in settings.items():
        options.update(_flat(f'{prefix}.{key}', value) if isinstance(value, dict)
                       else {f'{prefix}.{key}': value})
    return options
