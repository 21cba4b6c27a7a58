"""See distillation work in minutes: a teacher, a student alone, and the same student with several methods.

Draws a dataset of digits, trains and evaluates everything, prints a table, and writes comparison.md,
comparison.json, curves.png and, for detectors, detections.png into the work directory. Detectors are
distilled with KD and SHAKE; classifiers with KD, SOKD and SHAKE, and 3 seeds. Run the same command again to
continue after an interruption; finished trainings are not repeated.
"""
import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmkd.cli import run_tool
from mmkd.experiments.comparison import Comparison, compare, work_dir_of
from mmkd_cli.arguments import add_comparison_arguments

PAIRS = dict(detection='mmkd::examples/digits/faster_rcnn_student.py',
             classification='mmkd::examples/quickstart/classifier_student.py')
METHODS = dict(detection=('student', 'kd', 'shake'),
               classification=('student', 'kd', 'sokd', 'shake_student'))
FOLDERS = dict(detection='quickstart', classification='quickstart_classification')


def parse_args(arguments: Sequence[str] | None = None) -> Comparison:
    parser = argparse.ArgumentParser(
        prog='bash tools/quickstart.sh', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=tuple(PAIRS), default='detection',
                        help='detectors or classifiers (default: %(default)s)')
    add_comparison_arguments(parser, seeds='1, for classifiers 3', jobs='1, for classifiers all cores')
    parser.add_argument('--work-dir', type=Path, metavar='FOLDER',
                        help='output folder (default: work_dirs/quickstart or '
                        'work_dirs/quickstart_classification)')
    args = parser.parse_args(arguments)
    detection = args.task == 'detection'
    seeds = args.seeds or (1 if detection else 3)
    # A detector uses all cores itself; a small classifier does too little to share.
    jobs = args.jobs or (1 if detection else min(4, len(os.sched_getaffinity(0))))
    task = '' if detection else ' --task classification'
    smoke = ' --smoke' if args.smoke else ''
    return Comparison(
        pairs=(PAIRS[args.task], ), methods=METHODS[args.task], seeds=tuple(range(seeds)),
        command=f'bash tools/quickstart.sh{task} --seeds {seeds}{smoke}',
        work_dir=work_dir_of(args.work_dir, FOLDERS[args.task], args.smoke), data=args.data, jobs=jobs,
        smoke=args.smoke, pictures=True, pair_folders=False)


if __name__ == '__main__':
    run_tool(lambda: compare(parse_args()))
