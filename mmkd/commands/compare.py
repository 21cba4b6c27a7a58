"""Comparisons of methods: ``mmkd compare``."""
import argparse
import shlex

from ..cli import parse_options
from ..errors import MMKDError
from ..experiments.comparison import Comparison, compare, find_pair, pair_name, work_dir_of
from ..experiments.method_names import ordered


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    compare(plan(args))


def plan(args: argparse.Namespace) -> Comparison:
    """Return the comparison that the arguments ask for.

    Raises:
        MMKDError: If a config does not exist, or two pairs have the same name.
    """
    parse_options(args.cfg_options)
    args.pairs, args.methods = [find_pair(pair) for pair in args.pairs], ordered(args.methods)
    if len({pair_name(pair) for pair in args.pairs}) < len(args.pairs):
        raise MMKDError('Two pairs have the same name; compare them in two output folders.')
    return Comparison(
        pairs=tuple(args.pairs), methods=args.methods, command=command(args),
        seeds=tuple(range(args.first_seed, args.first_seed + args.seeds)),
        work_dir=work_dir_of(args.out, 'compare_methods', args.smoke), data=args.data,
        cfg_options=tuple(args.cfg_options), jobs=args.jobs, smoke=args.smoke,
        report_only=args.report_only)


def command(args: argparse.Namespace) -> str:
    """Return the command that makes the same comparison again."""
    words = ['mmkd', 'compare', *args.pairs, '--methods', *args.methods,
             '--seeds', str(args.seeds), '--first-seed', str(args.first_seed)]
    words += ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    words += ['--jobs', str(args.jobs)] if args.jobs > 1 else []
    return shlex.join(words + ['--smoke'] * args.smoke)
