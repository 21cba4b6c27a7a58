"""A comparison that takes minutes: ``mmkd quickstart``."""
import argparse
import os

from ..experiments.comparison import Comparison, compare, work_dir_of

PAIRS = dict(detection='mmkd::examples/digits/faster_rcnn_student.py',
             classification='mmkd::examples/quickstart/classifier_student.py')
METHODS = dict(detection=('student', 'kd', 'shake'),
               classification=('student', 'kd', 'sokd', 'shake_student'))
FOLDERS = dict(detection='quickstart', classification='quickstart_classification')


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    compare(plan(args))


def plan(args: argparse.Namespace) -> Comparison:
    """Return the comparison that the arguments ask for."""
    detection = args.task == 'detection'
    seeds = args.seeds or (1 if detection else 3)
    # A detector uses all cores itself; a small classifier does too little to share.
    jobs = args.jobs or (1 if detection else min(4, len(os.sched_getaffinity(0))))
    task = '' if detection else ' --task classification'
    smoke = ' --smoke' if args.smoke else ''
    return Comparison(
        pairs=(PAIRS[args.task], ), methods=METHODS[args.task], seeds=tuple(range(seeds)),
        command=f'mmkd quickstart{task} --seeds {seeds}{smoke}',
        work_dir=work_dir_of(args.work_dir, FOLDERS[args.task], args.smoke), data=args.data, jobs=jobs,
        smoke=args.smoke, pictures=True, pair_folders=False)
