r"""Compare methods: a student alone, and taught by each of several methods.

A PAIR is the training config of a student, detector or classifier, that names its teacher's config
(teacher=dict(config=...)). Trains the teacher and all students of every pair, with the same initialization,
batches, updates and learning rate for all methods, and prints a table. It is written into comparison.md,
and with all figures into comparison.json, in the output folder. Run it again to go on where it was
interrupted; finished trainings are not repeated.

    python tools/analysis_tools/compare_methods.py
    python tools/analysis_tools/compare_methods.py configs/cifar/cifar10_resnet32x4_resnet8x4.py --seeds 2 \\
        --cfg-options train_cfg.max_epochs=60 param_scheduler.milestones=[37,45,52]
"""

import argparse
import inspect
import os
import platform
import re
import shlex
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import quickstart_report as qr
import staged_training as st

PAIRS = ('configs/examples/digits/faster_rcnn_student.py', 'configs/examples/digits/retinanet_student.py')
TITLES = dict(
    student='student alone', kd='KD', kdtuned='KD†', dml='DML', sokd='SOKD', shake_student='SHAKE (student)',
    shake_teacher='SHAKE (teacher)', shake_alone='SHAKE (alone)')
# Against whom: all others, and KD as the plainest way to use a teacher.
REFERENCES = ('student', 'kd')
COST = dict(teacher=1.2, student=1.0, kd=1.2, kdtuned=2.2, dml=2.0, sokd=1.3, shake_student=1.3,
            shake_teacher=1.4, shake_alone=1.9)
DIFFERENT = dict(better='better than', worse='worse than', same='not distinguishable from')


def parse_args(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pairs', nargs='*', default=PAIRS, metavar='PAIR',
                        help='training config of a student that names its teacher (default: '
                        f'{" ".join(PAIRS)})')
    parser.add_argument('--methods', nargs='+', default=list(TITLES), metavar='METHOD',
                        help=f'{", ".join(TITLES)} (default: all these), any other that '
                        'tools/misc/list_methods.py lists, with settings as in sakd:method=AT, or several '
                        'joined by +; the student alone is always among them')
    st.add_common_arguments(parser, seeds=3)
    parser.add_argument('--first-seed', type=int, default=0, metavar='SEED',
                        help='count the seeds from here (default: 0); the teacher has seed 0')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE',
                        help='change settings of all trainings, teachers included')
    parser.add_argument('--out', dest='work_dir', type=Path,
                        help='where all of it goes (work_dirs/compare_methods)')
    args = parser.parse_args(arguments)
    st.finish_arguments(parser, args, 'compare_methods')
    order = [*TITLES, *(name for name in args.methods if name not in TITLES)]
    args.methods = [name for name in order if name in args.methods or name == 'student']
    for option in args.cfg_options:
        if '=' not in option:
            parser.error(f'--cfg-options: {option!r} is not KEY=VALUE, without spaces')
    for pair in args.pairs:
        if not find(pair):
            parser.error(f'there is no config {pair}')
    args.pairs = [find(pair) for pair in args.pairs]
    names = [name_of(pair) for pair in args.pairs]
    if len(set(names)) < len(names):
        parser.error('two pairs have the same name')
    return args


def find(pair):
    """Return the path of a pair, here or else in the checkout, and relative to that if inside; or nothing."""
    for path in (Path(pair).resolve(), st.ROOT / pair):
        if path.is_file():
            return str(path.relative_to(st.ROOT) if path.is_relative_to(st.ROOT) else path)
    return None


def name_of(pair):
    """Return a pair's name in results."""
    return Path(pair).stem.removesuffix('_student')


def title_of(name):
    """Return what people call a pair."""
    return name.replace('_', ' ').replace('faster rcnn', 'Faster R-CNN').replace('retinanet', 'RetinaNet')


def plan(args):
    """List all trainings in the order in which they run: pair by pair, seed by seed."""
    check_methods(args.methods)
    stages = []
    for pair in args.pairs:
        config = Path(st.ROOT, pair)
        facts = st.read_config(config, args.cfg_options)
        if not facts.teacher:
            raise st.StageError(f'{pair} names no teacher; add teacher=dict(config=…, checkpoint=…) to it.')
        if not Path(st.ROOT, facts.teacher).is_file():
            raise st.StageError(f'{pair} names the teacher {facts.teacher}, which is no file in the '
                                'checkout; name it by an absolute path.')
        if not facts.digits:
            check_data(config, args.cfg_options)
        teacher = make_stage(config, 'teacher', 0, args)
        stages.append(teacher)
        stages += [make_stage(config, method, seed, args, teacher)
                   for seed in seeds_of(args) for method in args.methods]
    return stages


def check_data(config, options):
    """Check that the data of a pair are there, or are downloaded."""
    from mmkd.apis.config import check_annotation_files
    from mmkd.errors import MMKDError
    cfg = st.load_config(config, options)
    try:
        for split in ('train_dataloader', 'val_dataloader', 'val_evaluator'):
            check_annotation_files(cfg.get(split), split)
    except MMKDError as error:
        raise st.StageError(f'{config}: {error}') from error


def parse_method(name):
    """Read the settings in a method's name.

    Args:
        name (str): For instance ``'kd'``, ``'shake_teacher'`` (a placement) or ``'sakd:method=AT'``.

    Returns:
        tuple[str, dict]: Name of a preset, in lower case, and settings.
    """
    first, *settings = name.split(':')
    preset, placement = first.lower().partition('_')[::2]
    own = dict(placement=placement) if placement else {}
    return preset, {**own, **dict(setting.split('=', 1) for setting in settings)}


def check_methods(methods):
    """Check that there are such methods, before anything is trained."""
    from mmkd.errors import nearest_names
    known = preset_names()
    for method in methods:
        for name in [] if method in TITLES else method.split('+'):
            if any('=' not in setting for setting in name.split(':')[1:]):
                raise st.StageError(f'{name!r} is not NAME:SETTING=VALUE.')
            preset, _ = parse_method(name)
            if preset not in known:
                raise st.StageError(f'There is no method {preset!r}{nearest_names(preset, known)}.')


def preset_names():
    """Return the names of all presets as papers write them, by those names in lower case."""
    from mmkd.models.methods import METHODS
    return {name.lower(): name for name in METHODS}


def with_first_stage():
    """Return the presets, in lower case, that begin with a first stage of training."""
    from mmkd.models.methods import METHODS
    parameters = {name: inspect.signature(entry.cls).parameters for name, entry in METHODS.items()}
    return {name.lower() for name, known in parameters.items()
            if 'first_phase_epochs' in known and known['first_phase_epochs'].default}


def method_title(method):
    """Return what people call a method, or several that are joined."""
    if method in TITLES:
        return TITLES[method]
    titles = []
    for name in method.split('+'):
        preset, settings = parse_method(name)
        title = TITLES.get(name) or TITLES.get(preset) or preset_names()[preset]
        shown = ', '.join(value for key, value in settings.items() if key != 'placement')
        titles.append(f'{title} ({shown})' if shown else title)
    return ' + '.join(titles)


def make_stage(config, method, seed, args, teacher=None):
    """Describe one training; ``teacher`` is the training that its teacher comes from."""
    facts, pair = st.read_config(config, args.cfg_options), name_of(config)
    name = method_title(method) if teacher else 'teacher'
    title = f'{title_of(pair)}, {name}, seed {seed}'
    folder = re.sub(r'[:=]', '-', f'{method}_seed{seed}' if teacher else method)
    work_dir = args.work_dir / pair / folder
    settings, others = dict(pair=pair), {}
    if teacher:
        taught_by = ('--teacher', teacher.config, '--teacher-checkpoint', teacher.checkpoint)
        # A student alone knows no teacher while it trains: its gap is measured afterward.
        others.update(metric='gap/kl', test=taught_by)
        if method != 'student':
            settings['method_settings'] = settings_of(method, facts.settings)
            if args.smoke:  # its one epoch has no room for a first stage of training
                for preset, own in settings['method_settings'].items():
                    if with_first_stage() & {preset, str(own.get('method')).lower()}:
                        own['first_phase_epochs'] = 0
            others['train'] = ('--distill', *settings['method_settings'], *taught_by)
            others['train_options'] = {
                'default_hooks.teacher_check.evaluate': False,
                'default_hooks.teacher_gap.type': 'mmkd.TeacherGapHook',
                **flat('model.methods', settings['method_settings'])}
    else:
        config = Path(st.ROOT, facts.teacher)
    # All that is compared comes from the last epoch, which is always evaluated.
    options = {'train_cfg.val_interval': 1000}
    return st.make_stage(config, method, seed, work_dir, args, teacher, settings, options, title=title,
                         cost=COST.get(method, 1.5), **others)


def checked_plan(args):
    """List all trainings, see :func:`plan`, after building every student once: hours later would be late."""
    from mmengine.logging import MMLogger
    stages = plan(args)
    MMLogger.get_instance('compare_methods').setLevel('WARNING')
    for stage in stages:
        if stage.train and stage.seed == args.first_seed and not stage.finished:
            check_fit(stage)
    return stages


def check_fit(stage):
    """Build a student with its methods and a teacher without weights.

    Raises:
        StageError: If they do not fit.
    """
    from mmengine.registry import MODELS, init_default_scope

    from mmkd.apis import compose_distillation, prepare_config
    from mmkd.apis.config import model_config
    from mmkd.cli import merge_options
    from mmkd.engine.hooks.first_phase_hook import check_first_phases
    from mmkd.errors import MMKDError
    cfg = st.load_config(stage.config, [])
    try:
        compose_distillation(cfg, list(stage.settings['method_settings']), teacher_checkpoint='random')
        merge_options(cfg, st.parse_options(
            f'{key}={value}' for key, value in {**stage.options, **stage.train_options}.items()))
        prepare_config(cfg)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(model_config(cfg))
        check_first_phases(model.mmkd.methods, cfg.train_cfg.max_epochs)
    except MMKDError as error:
        raise st.StageError(f'{stage.title}: {error}') from error


def flat(prefix, settings):
    """Return nested settings as config options."""
    options = {}
    for key, value in settings.items():
        nested = flat(f'{prefix}.{key}', value) if isinstance(value, dict) else {f'{prefix}.{key}': value}
        options.update(nested)
    return options


def settings_of(method, comparison):
    """Return the settings of every method that a name joins.

    Args:
        method (str): For instance ``'shake_teacher'`` or ``'fitnet+kd'``.
        comparison (dict): What the pair says under ``comparison``: settings by a method's name, and under
            ``proxies`` those of all methods of who teaches.

    Returns:
        dict: By the name of a preset, in lower case, its settings.
    """
    found = {}
    for name in method.split('+'):
        preset, own = parse_method(name)
        common = comparison.get('proxies', {}) if preset in ('kd', 'kdtuned', 'dml', 'sokd', 'shake') else {}
        found[preset] = {**common, **comparison.get(preset, {}), **own}
    return found


def seeds_of(args):
    """Return the students' seeds."""
    return range(args.first_seed, args.first_seed + args.seeds)


def summarize(results, seeds, settings):
    """Sum up all runs.

    Args:
        results (dict): By pair and method a list of results, one a seed, as in ``result.json``; of the
            ``teacher`` a list of one.
        seeds (Sequence[int]): The seeds, in the order of those lists.
        settings (dict): How the runs were made; passed on as it is.

    Returns:
        dict: Content of ``comparison.json``; metrics on the 0 to 1 scale.
    """
    return dict(settings, seeds=list(seeds),
                pairs={name: _summarize_pair(runs) for name, runs in results.items()})


def _summarize_pair(results):
    methods = {name: runs for name, runs in results.items() if name != 'teacher'}
    metric, _ = qr.score(results['teacher'][0]['metrics'])
    scores = {name: [run['metrics'][metric] for run in runs] for name, runs in methods.items()}
    # Whatever else runs on the machine only adds time.
    seconds = {name: min(run['seconds_per_iteration'] for run in runs) for name, runs in methods.items()}
    rows = {}
    for name, runs in methods.items():
        gaps = {key: [run['gap'][key] for run in runs] for key in ('kl', 'agreement')}
        rows[name] = dict(
            mean=statistics.mean(scores[name]),
            std=qr.spread(scores[name]),
            per_seed=scores[name],
            seconds_per_iteration=seconds[name],
            relative_step_time=seconds[name] / seconds['student'],
            gap={key: dict(mean=statistics.mean(values), std=qr.spread(values), per_seed=values)
                 for key, values in gaps.items()})
    pairs = {}
    for place, other in enumerate(REFERENCES):
        for name in methods:
            if other in methods and name not in REFERENCES[:place + 1]:
                pair = qr.paired_difference(scores[name], scores[other])
                pairs[f'{name}-{other}'] = dict(pair, verdict=verdict(pair))
    return dict(metric=metric, teacher=results['teacher'][0], methods=rows, paired_differences=pairs)


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
    """Lay out the summary as Markdown, in points of AP or per cent.

    Args:
        summary (dict): As of :func:`summarize`.

    Returns:
        str: A table and what it says for every pair, and how to read it.
    """
    number = len(summary['seeds'])
    parts = [_markdown_pair(title_of(name), part) for name, part in summary['pairs'].items()]
    pairs = sum(len(part['paired_differences']) for part in summary['pairs'].values())
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
        "val images after training; of detectors on the student's own boxes (two-stage) or at all places, "
        "weighted by the teacher's probability of an object (dense).")
    return '\n\n'.join(parts) + '\n'


def _markdown_pair(title, part):
    score = qr.SCORES[part['metric']]
    pairs = part['paired_differences']
    references = [name for name in REFERENCES if name in part['methods']]
    head = ['', score, f'{score} by seed', *(f'− {method_title(name)}' for name in references), 'step time',
            'KL(T‖S)', 'agreement']
    lines = [f'### {title}', '', _row(head), _row(['---'] * len(head))]
    for name, row in part['methods'].items():
        lines.append(_row([
            method_title(name),
            _with_spread(100 * row['mean'], row['std'] and 100 * row['std'], 1),
            ', '.join(f'{100 * one:.1f}' for one in row['per_seed']),
            *(_difference(pairs.get(f'{name}-{other}')) for other in references),
            f'{row["relative_step_time"]:.2f} ({_seconds(row["seconds_per_iteration"])})',
            _with_spread(row['gap']['kl']['mean'], row['gap']['kl']['std'], 3),
            _with_spread(row['gap']['agreement']['mean'], row['gap']['agreement']['std'], 3)]))
    teacher, student = part['teacher']['metrics'][part['metric']], part['methods']['student']['mean']
    lines += ['', f'- The teacher has {100 * teacher:.1f} {score}, {_signed(teacher - student)} against the '
              'student alone' + ('.' if teacher - student >= qr.MIN_TEACHER_LEAD[part['metric']] else
                                 ': too little for the comparison to say anything.')]
    for other in references:
        for kind, words in DIFFERENT.items():
            names = [method_title(name) for name in part['methods']
                     if pairs.get(f'{name}-{other}', {}).get('verdict') == kind]
            if names:
                lines.append(f'- {words[0].upper()}{words[1:]} {method_title(other)}: {", ".join(names)}.')
    return '\n'.join(lines)


def _row(cells):
    return f'| {" | ".join(cells)} |'


def _with_spread(mean, std, digits):
    return f'{mean:.{digits}f}' + ('' if std is None else f' ± {std:.{digits}f}')


def _seconds(value):
    return f'{value:.2f} s' if value >= 0.1 else f'{1000 * value:.0f} ms'


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
    import mmpretrain
    import torch
    return dict(
        python=platform.python_version(), torch=torch.__version__, mmdet=mmdet.__version__,
        mmpretrain=mmpretrain.__version__,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU',
        cores=len(os.sched_getaffinity(0)))


def command(args):
    """Return the command that makes the same comparison in any checkout."""
    words = ['python', 'tools/analysis_tools/compare_methods.py', *map(str, args.pairs), '--methods',
             *args.methods, '--seeds', str(args.seeds), '--first-seed', str(args.first_seed)]
    words += ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    words += ['--jobs', str(args.jobs)] if args.jobs > 1 else []
    return shlex.join(words + ['--smoke'] * args.smoke)


def report(stages, args):
    """Write and print what came out of the finished trainings."""
    names = [name_of(pair) for pair in args.pairs]
    results, iterations = {name: {} for name in names}, {name: {} for name in names}
    for stage in stages:
        pair = stage.settings['pair']
        results[pair].setdefault(stage.method, []).append(stage.result())
        iterations[pair]['teacher' if stage.method == 'teacher' else 'students'] = stage.iterations
    facts = {name_of(pair): st.read_config(Path(st.ROOT, pair), args.cfg_options) for pair in args.pairs}
    settings = dict(images={name: st.images_of(one, args) for name, one in facts.items()},
                    methods={name: one.settings for name, one in facts.items()}, iterations=iterations)
    summary = summarize(results, seeds_of(args), dict(
        command=command(args), settings=settings, environment=environment()))
    st.write_json(args.work_dir / 'comparison.json', summary)
    text = markdown(summary)
    (args.work_dir / 'comparison.md').write_text(text)
    print(f'\n{text}\nWritten to {args.work_dir}: comparison.json, comparison.md')


if __name__ == '__main__':
    arguments = parse_args()
    st.run(arguments, arguments.pairs, checked_plan, report)
