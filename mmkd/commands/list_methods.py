"""The list of methods: ``mmkd list``."""
import argparse
from collections.abc import Sequence

from ..models.methods.table import METHODS, TASKS, MethodEntry

KINDS = dict({task: (task, ) for task in TASKS}, detector=('two-stage', 'dense', 'query-based'))
"""The choices of ``--task``, and the kinds of networks that they stand for."""


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    kinds = TASKS if args.task is None else KINDS[args.task]
    rows = [row(entry) for entry in METHODS.values() if set(kinds) & set(entry.task)]
    for line in table([('method', 'for', 'config', 'paper'), *rows]):
        print(line)


def row(entry: MethodEntry) -> tuple[str, ...]:
    """Return a method's name, the networks it is for, a config (or an option) that uses it, and its paper."""
    example = f'--distill {entry.name.lower()}'
    if entry.config:
        example = 'mmkd::' + entry.config.removeprefix('configs/')
    return entry.name, ', '.join(entry.task), example, entry.paper


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows in aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ['  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in rows]
