r"""Compare methods: a student alone, and the same student with each of several methods.

A PAIR is the training config of a student, detector or classifier, that names its teacher's config
(teacher=dict(config=...)). Trains the teacher and all students of every pair, with the same initialization,
batches, updates and learning rate for all methods, and prints a table. The table is also written to
comparison.md, and all figures to comparison.json, in the output folder, after every training, as far as it is
finished. Run the same command again to continue after an interruption, or to repeat trainings that failed;
finished trainings are not repeated.

    python tools/analysis_tools/compare_methods.py
    python tools/analysis_tools/compare_methods.py --seeds 10 --report-only
    python tools/analysis_tools/compare_methods.py configs/cifar/resnet32x4_resnet8x4_cifar10.py --seeds 2 \
        --cfg-options train_cfg.max_epochs=60 param_scheduler.milestones=[37,45,52]
"""
import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from mmkd.cli import run_tool
from mmkd.experiments.comparison import Comparison, add_arguments, compare, find_pair, pair_name, work_dir_of
from mmkd.experiments.method_names import TITLES, ordered
from mmkd.experiments.training_config import parse_options

PAIRS = ('configs/examples/digits/faster_rcnn_student.py', 'configs/examples/digits/retinanet_student.py')


def parse_args(arguments: Sequence[str] | None = None) -> Comparison:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pairs', nargs='*', default=PAIRS, metavar='PAIR',
                        help='training config of a student that names its teacher (default: '
                        f'{" ".join(PAIRS)})')
    parser.add_argument('--methods', nargs='+', default=list(TITLES), metavar='METHOD',
                        help=f'{", ".join(TITLES)} (default: all of these), any other method that '
                        'tools/misc/list_methods.py lists, with settings as in sakd:method=AT, or several '
                        'methods joined by +; the student alone is always included')
    add_arguments(parser, seeds=3, jobs=1)
    parser.add_argument('--first-seed', type=int, default=0, metavar='SEED',
                        help='first seed of the students (default: 0); the teacher has seed 0')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='change settings of all trainings, teachers included')
    parser.add_argument('--report-only', action='store_true',
                        help='report what is finished, without training anything')
    parser.add_argument('--out', type=Path, metavar='FOLDER',
                        help='output folder (default: work_dirs/compare_methods)')
    args = parser.parse_args(arguments)
    parse_options(args.cfg_options, parser)
    pairs = [find_pair(pair) or parser.error(f'there is no config {pair}') for pair in args.pairs]
    if len({pair_name(pair) for pair in pairs}) < len(pairs):
        parser.error('two pairs have the same name')
    args.pairs, args.methods = pairs, ordered(args.methods)
    return Comparison(
        pairs=tuple(pairs), methods=args.methods, command=command(args),
        seeds=tuple(range(args.first_seed, args.first_seed + args.seeds)),
        work_dir=work_dir_of(args.out, 'compare_methods', args.smoke), data=args.data,
        cfg_options=tuple(args.cfg_options), jobs=args.jobs, smoke=args.smoke,
        report_only=args.report_only)


def command(args: argparse.Namespace) -> str:
    """Return the command that makes the same comparison in any checkout."""
    words = ['python', 'tools/analysis_tools/compare_methods.py', *args.pairs, '--methods', *args.methods,
             '--seeds', str(args.seeds), '--first-seed', str(args.first_seed)]
    words += ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    words += ['--jobs', str(args.jobs)] if args.jobs > 1 else []
    return shlex.join(words + ['--smoke'] * args.smoke)


if __name__ == '__main__':
    run_tool(lambda: compare(parse_args()))
