"""List all distillation methods: what they are, where they work, and which config shows them.

python tools/misc/list_methods.py
python tools/misc/list_methods.py --task detector
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

from mmkd.cli import run_tool
from mmkd.models.methods import PRESETS, ZOO

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
TASKS = ('classifier', 'detector')
OTHERS = dict(
    KD=('logits', TASKS, False, 'Knowledge distillation (Hinton et al., 2015)'),
    KDTuned=('logits', TASKS, True, 'KD†, a tuned teacher (Li and Jin, NeurIPS 2022)'),
    DML=('logits', TASKS, True, 'Deep mutual learning (Zhang et al., CVPR 2018)'),
    SHAKE=('logits', TASKS, True, 'Shadow knowledge distillation (Li and Jin, NeurIPS 2022)'),
    SAKD=('any', ('classifier', ), True, 'Spot-adaptive distillation (Song et al., IEEE TIP 2022)'),
    SOKD=('logits', TASKS, True, 'Semi-online knowledge distillation (Liu et al., BMVC 2021)'),
    DeiT=('logits', ('classifier', ), False, 'Data-efficient image transformers (Touvron et al., ICML 2021)'),
    CrossKD=('logits, boxes', ('detector', ), False, 'Cross-head distillation (Wang et al., CVPR 2024)'),
    LD=('boxes', ('detector', ), False, 'Localization distillation (Zheng et al., CVPR 2022)'))
"""Of methods that are not in the table of the zoo: what they teach, for which tasks, whether they train parts
of their own, and the paper."""


def main() -> None:
    args = parse_args()
    rows = [row for row in map(describe, PRESETS) if args.task in (None, *row[2].split(', '))]
    for line in table([('method', 'of', 'for', 'own parameters', 'config', 'paper'), *rows]):
        print(line)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=TASKS, help='only methods for these')
    return parser.parse_args()


def describe(name: str) -> tuple[str, ...]:
    """Return a method's name, what it teaches, its tasks, what it trains, a config and its paper."""
    entry = next((entry for entry in ZOO if entry.name == name), None)
    if entry:
        kind, trains, paper = 'logits' if entry.of_logits else 'features', entry.trains, entry.paper
        tasks = [task for task in TASKS if getattr(entry, task)]
    else:
        kind, tasks, trains, paper = OTHERS[name]
    return name, kind, ', '.join(tasks), 'yes' if trains else 'no', config_of(name), paper


def config_of(name: str) -> str:
    """Return the shortest shipped config that uses a method, or how to use it without one."""
    found = [path for path in CONFIGS.rglob('*.py') if f"'mmkd.{name}'" in path.read_text()]
    if not found:
        return f'--distill {name.lower()}'
    best = min(found, key=lambda path: ('_base_' in path.parts, len(path.read_text()), path))
    return str(best.relative_to(CONFIGS.parent))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows with their columns below one another."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ['  '.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in rows]


if __name__ == '__main__':
    run_tool(main)
