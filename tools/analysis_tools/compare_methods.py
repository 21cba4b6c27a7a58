"""Compare who teaches: a student alone, and with KD, KD†, DML, SOKD and SHAKE in its three placements.

Makes the digits detection set, trains one teacher and all students of every detector, with the same
initialisation, batches, updates and learning rate for all methods, and prints a table. It is written
into comparison.md, and with all figures into comparison.json, in the output folder. Run it again to go
on where it was interrupted; finished trainings are not repeated.
"""

import argparse
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import quickstart_report as qr  # noqa: E402
import staged_training as st  # noqa: E402

CONFIGS = st.ROOT / 'configs/digits'
DETECTORS = dict(faster_rcnn='Faster R-CNN', retinanet='RetinaNet')
TITLES = dict(
    student='student alone', kd='KD', kdtuned='KD†', dml='DML', sokd='SOKD', shake_student='SHAKE (student)',
    shake_teacher='SHAKE (teacher)', shake_alone='SHAKE (alone)')
# Against whom: all others, and KD as the plainest way to use a teacher.
REFERENCES = ('student', 'kd')
# Of all methods; fixed with KD on seeds 100 and 101 (docs/benchmarks/quickstart.md, where.md).
SETTINGS = dict(faster_rcnn=dict(temperature=1.0, weight=1.0), retinanet=dict(temperature=1.0, weight=5.0))
COST = dict(teacher=1.2, student=1.0, kd=1.2, kdtuned=2.2, dml=2.0, sokd=1.3, shake_student=1.3,
            shake_teacher=1.4, shake_alone=1.9)
DIFFERENT = dict(better='better than', worse='worse than', same='not distinguishable from')


def parse_args(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--detectors', nargs='+', choices=DETECTORS, default=list(DETECTORS),
                        metavar='DETECTOR', help=f'of {", ".join(DETECTORS)} (default: all)')
    parser.add_argument('--methods', nargs='+', choices=TITLES, default=list(TITLES), metavar='METHOD',
                        help=f'of {", ".join(TITLES)} (default: all); student is always among them')
    st.add_common_arguments(parser, seeds=3)
    parser.add_argument('--first-seed', type=int, default=0, metavar='SEED',
                        help='count the seeds from here (default: 0); the teacher has seed 0')
    parser.add_argument('--out', dest='work_dir', type=Path,
                        help='where all of it goes (work_dirs/compare_methods)')
    args = parser.parse_args(arguments)
    st.finish_arguments(parser, args, 'compare_methods')
    args.detectors = [name for name in DETECTORS if name in args.detectors]
    args.methods = [name for name in TITLES if name in args.methods or name == 'student']
    return args


def plan(args):
    """List all trainings in the order in which they run: detector by detector, seed by seed."""
    stages = []
    for detector in args.detectors:
        teacher = make_stage(detector, 'teacher', 0, args)
        stages.append(teacher)
        stages += [make_stage(detector, method, seed, args, teacher)
                   for seed in seeds_of(args) for method in args.methods]
    return stages


def make_stage(detector, method, seed, args, teacher=None):
    """Describe one training; ``teacher`` is the training that its teacher comes from."""
    title = f'{DETECTORS[detector]}, {TITLES.get(method, "teacher")}, seed {seed}'
    role = 'student' if teacher else 'teacher'
    work_dir = args.work_dir / detector / (f'{method}_seed{seed}' if teacher else method)
    settings, others = dict(detector=detector), {}
    if teacher:
        taught_by = ('--teacher', teacher.config, '--teacher-checkpoint', teacher.checkpoint)
        # A student alone knows no teacher while it trains: its gap is measured afterwards.
        others.update(metric='gap/kl', test=taught_by)
        if method != 'student':
            preset, placement = method.partition('_')[::2]
            settings['method_settings'] = dict(
                SETTINGS[detector], **(dict(placement=placement) if placement else {}))
            others['train'] = ('--distill', preset, *taught_by)
            others['train_options'] = {
                'default_hooks.teacher_check.evaluate': False,
                'default_hooks.teacher_gap.type': 'mmkd.TeacherGapHook',
                **{f'model.methods.{preset}.{key}': value
                   for key, value in settings['method_settings'].items()}}
    # All that is compared comes from the last epoch, which is always evaluated.
    options = {'train_cfg.val_interval': 1000}
    return st.make_stage(CONFIGS / f'{detector}_{role}.py', method, seed, work_dir, args, teacher, settings,
                         options, title=title, cost=COST[method], **others)


def seeds_of(args):
    """Return the students' seeds."""
    return range(args.first_seed, args.first_seed + args.seeds)


def summarise(results, seeds, settings):
    """Sum up all runs.

    Args:
        results (dict): By detector and method a list of results, one a seed, as in ``result.json``; of the
            ``teacher`` a list of one.
        seeds (Sequence[int]): The seeds, in the order of those lists.
        settings (dict): How the runs were made; passed on as it is.

    Returns:
        dict: Content of ``comparison.json``; metrics on the 0 to 1 scale.
    """
    return dict(settings, seeds=list(seeds),
                detectors={name: _summarise_detector(runs) for name, runs in results.items()})


def _summarise_detector(results):
    methods = {name: runs for name, runs in results.items() if name != 'teacher'}
    aps = {name: [run['metrics']['bbox_mAP'] for run in runs] for name, runs in methods.items()}
    # Whatever else runs on the machine only adds time.
    seconds = {name: min(run['seconds_per_iteration'] for run in runs) for name, runs in methods.items()}
    rows = {}
    for name, runs in methods.items():
        gaps = {key: [run['gap'][key] for run in runs] for key in ('kl', 'agreement')}
        rows[name] = dict(
            bbox_mAP=statistics.mean(aps[name]),
            bbox_mAP_std=qr.spread(aps[name]),
            bbox_mAP_50=statistics.mean(run['metrics']['bbox_mAP_50'] for run in runs),
            per_seed=aps[name],
            seconds_per_iteration=seconds[name],
            relative_step_time=seconds[name] / seconds['student'],
            gap={key: dict(mean=statistics.mean(values), std=qr.spread(values), per_seed=values)
                 for key, values in gaps.items()})
    pairs = {}
    for place, other in enumerate(REFERENCES):
        for name in methods:
            if other in methods and name not in REFERENCES[:place + 1]:
                pair = qr.paired_difference(aps[name], aps[other])
                pairs[f'{name}-{other}'] = dict(pair, verdict=verdict(pair))
    return dict(teacher=results['teacher'][0], methods=rows, paired_differences=pairs)


def verdict(pair):
    """Tell what a paired difference says.

    Args:
        pair (dict): As of :func:`quickstart_report.paired_difference`.

    Returns:
        str: ``'better'``, ``'worse'``, or ``'same'`` when the interval includes zero or there is none.
    """
    low, high = pair['ci95'] or (0, 0)
    return 'better' if low > 0 else 'worse' if high < 0 else 'same'


def markdown(summary):
    """Lay out the summary as Markdown, in AP points.

    Args:
        summary (dict): As of :func:`summarise`.

    Returns:
        str: A table and what it says for every detector, and how to read it.
    """
    number = len(summary['seeds'])
    parts = [_markdown_detector(DETECTORS[name], part) for name, part in summary['detectors'].items()]
    pairs = sum(len(part['paired_differences']) for part in summary['detectors'].values())
    if number > 1:
        spread = (
            f'± is the standard deviation over {number} seeds (n − 1); differences are paired by seed, with '
            "Student's t 95 % intervals. n.d.: not distinguishable, the interval includes zero. Each of the "
            f'{pairs} intervals stands for itself; where nothing differs, one in twenty leaves out zero by '
            'chance.')
    else:
        spread = 'One seed tells nothing about the spread, so that no difference can be told from chance.'
    parts.append(
        f'{spread} Step time: seconds per iteration (median of the fastest seed), relative to the student '
        "alone. KL(T‖S) in nats and top-1 agreement: of the teacher's and the student's class outputs on the "
        "val images after training, on the student's own boxes (two-stage) or at all places, weighted by the "
        "teacher's probability of an object (dense).")
    return '\n\n'.join(parts) + '\n'


def _markdown_detector(title, part):
    pairs = part['paired_differences']
    references = [name for name in REFERENCES if name in part['methods']]
    head = ['', 'AP', 'AP by seed', *(f'− {TITLES[name]}' for name in references), 'step time', 'KL(T‖S)',
            'agreement']
    lines = [f'### {title}', '', _row(head), _row(['---'] * len(head))]
    for name, row in part['methods'].items():
        lines.append(_row([
            TITLES[name],
            _with_spread(100 * row['bbox_mAP'], row['bbox_mAP_std'] and 100 * row['bbox_mAP_std'], 1),
            ', '.join(f'{100 * ap:.1f}' for ap in row['per_seed']),
            *(_difference(pairs.get(f'{name}-{other}')) for other in references),
            f'{row["relative_step_time"]:.2f} ({row["seconds_per_iteration"]:.2f} s)',
            _with_spread(row['gap']['kl']['mean'], row['gap']['kl']['std'], 3),
            _with_spread(row['gap']['agreement']['mean'], row['gap']['agreement']['std'], 3)]))
    teacher, student = (row['metrics']['bbox_mAP'] if 'metrics' in row else row['bbox_mAP']
                        for row in (part['teacher'], part['methods']['student']))
    lines += ['', f'- The teacher has {100 * teacher:.1f} AP, {_signed(teacher - student)} against the '
              'student alone' + ('.' if teacher - student >= qr.MIN_TEACHER_LEAD else
                                 ': too little for the comparison to say anything.')]
    for other in references:
        for kind, words in DIFFERENT.items():
            names = [TITLES[name] for name in part['methods']
                     if pairs.get(f'{name}-{other}', {}).get('verdict') == kind]
            if names:
                lines.append(f'- {words[0].upper()}{words[1:]} {TITLES[other]}: {", ".join(names)}.')
    return '\n'.join(lines)


def _row(cells):
    return f'| {" | ".join(cells)} |'


def _with_spread(mean, std, digits):
    return f'{mean:.{digits}f}' + ('' if std is None else f' ± {std:.{digits}f}')


def _difference(pair):
    if pair is None:
        return ''
    text = _signed(pair['mean'])
    if pair['ci95']:
        text += f' ({" to ".join(map(_signed, pair["ci95"]))})'
    return text + (' n.d.' if pair['verdict'] == 'same' else '')


def _signed(difference):
    return f'{100 * difference:+.1f}'.replace('-', '−')


def environment():
    """Return what step times depend on."""
    import mmdet
    import torch
    return dict(
        python=platform.python_version(), torch=torch.__version__, mmdet=mmdet.__version__,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU',
        cores=len(os.sched_getaffinity(0)), threads=torch.get_num_threads())


def command(args):
    """Return the command that makes the same comparison in any checkout."""
    words = ['python', 'tools/analysis_tools/compare_methods.py', '--detectors', *args.detectors, '--methods',
             *args.methods, '--seeds', str(args.seeds), '--first-seed', str(args.first_seed)]
    return shlex.join(words + ['--smoke'] * args.smoke)


def report(stages, args):
    """Write and print what came out of the finished trainings."""
    results = {detector: {} for detector in args.detectors}
    iterations = {detector: {} for detector in args.detectors}
    for stage in stages:
        detector = stage.settings['detector']
        results[detector].setdefault(stage.method, []).append(stage.result())
        iterations[detector]['teacher' if stage.method == 'teacher' else 'students'] = stage.iterations
    methods = {detector: SETTINGS[detector] for detector in args.detectors}
    settings = dict(images=st.images_of(args), methods=methods, iterations=iterations)
    summary = summarise(results, seeds_of(args), dict(
        command=command(args), settings=settings, environment=environment()))
    st.write_json(args.work_dir / 'comparison.json', summary)
    text = markdown(summary)
    (args.work_dir / 'comparison.md').write_text(text)
    print(f'\n{text}\nWritten to {args.work_dir}: comparison.json, comparison.md')


if __name__ == '__main__':
    st.run(parse_args(), plan, report)
