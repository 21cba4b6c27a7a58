"""See distillation work in minutes: one teacher, and a student alone, with KD and with SHAKE.

Detection: makes the digits detection set, trains, evaluates on its val images, prints a table, and writes
summary.json, curves.png and detections.png into the work directory. Classification: compares the same
and SOKD on the digits classification set with 3 seeds, by analysis_tools/compare_methods.py. Run it again to
go on where it was interrupted; finished trainings are not repeated.
"""

import argparse
import os
from pathlib import Path

import quickstart_report as qr
import staged_training as st

CONFIGS = st.ROOT / 'configs/examples/quickstart'
COST = dict(teacher=1.2, student=1.0, kd=1.25, shake=1.35)


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='bash tools/quickstart.sh', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=('detection', 'classification'), default='detection',
                        help='detectors, or classifiers (default: %(default)s)')
    st.add_common_arguments(parser, seeds='1, for classifiers 3', jobs='1, for classifiers all cores')
    parser.add_argument('--work-dir', type=Path,
                        help='where all of it goes (work_dirs/quickstart or '
                        'work_dirs/quickstart_classification)')
    args = parser.parse_args()
    detection = args.task == 'detection'
    if args.seeds is None:
        args.seeds = 1 if detection else 3
    if args.jobs is None:
        # The detectors use all cores themselves; what one small classifier does is too little to share.
        args.jobs = 1 if detection else min(4, len(os.sched_getaffinity(0)))
    st.finish_arguments(parser, args, 'quickstart' if detection else 'quickstart_classification')
    return args


def plan(args):
    """List all trainings in the order in which they run: the teacher, then seed by seed."""
    teacher = make_stage('teacher', 0, args.work_dir / 'teacher', args)
    stages = [teacher]
    for seed in range(args.seeds):
        for method in qr.METHODS:
            work_dir = args.work_dir / f'{method}_seed{seed}'
            uses = None if method == 'student' else teacher
            stages.append(make_stage(method, seed, work_dir, args, uses))
    return stages


def make_stage(method, seed, work_dir, args, teacher=None):
    """Describe one training; ``teacher`` is the training that its teacher comes from."""
    options = {'model.teacher.checkpoint': teacher.checkpoint} if teacher else None
    return st.make_stage(
        CONFIGS / f'{method}.py', method, seed, work_dir, args, teacher, options=options,
        title=f'{qr.TITLES[method]}, seed {seed}', cost=COST[method])


def report(stages, args):
    """Write and print what came out of the finished trainings."""
    runs = {method: [stage for stage in stages if stage.method == method]
            for method in ('teacher', *qr.METHODS)}
    results = {method: [stage.result()['metrics'] for stage in of_method]
               for method, of_method in runs.items()}
    results['teacher'] = results['teacher'][0]
    facts = st.read_config(CONFIGS / 'student.py')
    settings = dict(images=st.images_of(facts, args), epochs={stage.method: stage.epochs for stage in stages})
    summary = qr.summarize(results, list(range(args.seeds)), settings)
    st.write_json(args.work_dir / 'summary.json', summary)
    qr.plot_curves(args.work_dir / 'curves.png',
                   {method: [stage.work_dir for stage in runs[method]] for method in qr.METHODS})
    shown = dict(teacher='teacher', student='student alone', shake='SHAKE student')
    qr.plot_detections(
        args.work_dir / 'detections.png', st.digits_folder('digits_det', args),
        [(title, CONFIGS / f'{"teacher" if method == "teacher" else "student"}.py',
          runs[method][0].checkpoint) for method, title in shown.items()],
        st.data_options(facts, args))
    print(f'\n{qr.format_table(summary)}\n')
    print(f'Written to {args.work_dir}: summary.json, curves.png, detections.png')


def compare_classifiers(args):
    """Train and compare classifiers with the general tool."""
    from analysis_tools import compare_methods
    words = [CONFIGS / 'classifier_student.py', '--methods', 'kd', 'shake_student', 'sokd',
             '--seeds', args.seeds, '--jobs', args.jobs, '--out', args.work_dir]
    words += ['--data', args.data] if args.data else []
    words += ['--smoke'] if args.smoke else []
    arguments = compare_methods.parse_args([str(word) for word in words])
    st.run(arguments, arguments.pairs, compare_methods.plan, compare_methods.report)


if __name__ == '__main__':
    arguments = parse_args()
    if arguments.task == 'classification':
        compare_classifiers(arguments)
    else:
        st.run(arguments, [CONFIGS / 'student.py'], plan, report)
