r"""Find the weight of a method for a student: successive halving over weights and shares of the gradient.

CONFIG is the training config of a student. It names its teacher (teacher=dict(config=...,
checkpoint=...)), or --teacher and --teacher-checkpoint do. Every candidate is trained for a few epochs,
the better half for twice as many, and so on up to the full length. Learning rate schedules are shortened
accordingly. The student alone takes part for comparison. The table is also written to search.md, and all
figures to search.json. Run the same command again to continue after an interruption; finished trainings
are not repeated.

    python tools/analysis_tools/find_weight.py my_student.py --distill at --weights 1 10 100 1000
"""
import argparse
from pathlib import Path

from mmkd.cli import parse_options, run_tool
from mmkd.errors import MMKDError, nearest_names
from mmkd.experiments.comparison import find_pair, work_dir_of
from mmkd.experiments.weight_search import WeightSearch, search
from mmkd.models.methods.table import METHODS
from mmkd_cli.arguments import at_least


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='training config of a student')
    parser.add_argument('--distill', required=True, metavar='METHOD',
                        help="a method that 'mmkd list' lists")
    parser.add_argument('--teacher', metavar='CONFIG',
                        help="the teacher's config (default: the teacher that CONFIG names)")
    parser.add_argument('--teacher-checkpoint', metavar='FILE', help="the teacher's weights")
    parser.add_argument('--weights', type=positive, nargs='+', default=[], metavar='W', help='weights to try')
    parser.add_argument('--shares', type=positive, nargs='+', default=[], metavar='S',
                        help="shares to try: the size of the method's gradient relative to the task's "
                        '(default: 0.1 0.3 1 unless --weights is given)')
    parser.add_argument('--rounds', type=at_least(1), default=3, metavar='N',
                        help='number of rounds, each with twice the epochs of the one before (default: 3)')
    parser.add_argument('--seeds', type=at_least(1), default=1, metavar='N',
                        help='train every candidate with N seeds (default: 1)')
    parser.add_argument('--first-seed', type=int, default=100, metavar='SEED',
                        help='first seed (default: 100, so that seeds 0, 1, ... are left for reports)')
    parser.add_argument('--jobs', type=at_least(1), default=1, metavar='N',
                        help='how many trainings run at a time and share the cores (default: 1)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='change settings of all trainings')
    parser.add_argument('--out', type=Path, metavar='FOLDER',
                        help='output folder (default: work_dirs/find_weight)')
    args = parser.parse_args()
    if bool(args.teacher) != bool(args.teacher_checkpoint):
        parser.error('--teacher and --teacher-checkpoint go together')
    parse_options(args.cfg_options)
    return args


def positive(text: str) -> float:
    """Check, as an argument type, that a number is above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'must be a number above 0, not {text!r}')
    return number


def absolute(name: str) -> str:
    """Return the absolute path of a file; other names, such as ``mmdet::...``, stay as they are."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def main() -> None:
    args = parse_args()
    method = args.distill.lower()
    known = [name.lower() for name in METHODS]
    if method not in known:
        raise MMKDError(f'There is no method {args.distill!r}{nearest_names(method, known)}.')
    search(WeightSearch(
        config=find_pair(args.config), method=method, weights=tuple(args.weights),
        shares=tuple(args.shares or ([] if args.weights else [0.1, 0.3, 1.0])),
        work_dir=work_dir_of(args.out, 'find_weight', smoke=False),
        teacher=(absolute(args.teacher), absolute(args.teacher_checkpoint)) if args.teacher else None,
        seeds=tuple(range(args.first_seed, args.first_seed + args.seeds)), rounds=args.rounds,
        cfg_options=tuple(args.cfg_options), jobs=args.jobs))


if __name__ == '__main__':
    run_tool(main)
