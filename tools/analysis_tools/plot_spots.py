"""Plot where SAKD distills: the share of samples (or images) at every spot, by epoch and by class.

    python tools/analysis_tools/plot_spots.py work_dirs/sakd_at
    python tools/analysis_tools/plot_spots.py work_dirs/sakd_at --epoch 100 --out spots.png

The input is METHOD_epochs.jsonl, which the training writes into its work directory.
"""
import argparse
import json
from pathlib import Path

from mmkd.cli import run_tool
from mmkd.errors import MMKDError, one_line


def main() -> None:
    args = parse_args()
    path = find_reports(args.work_dir)
    reports = read_reports(path)
    if args.epoch is not None and args.epoch not in reports:
        raise MMKDError(f'{path} has the epochs {min(reports)} to {max(reports)}, not epoch {args.epoch}.')
    out = args.out or path.with_suffix('.png')
    plot(reports, args.epoch or max(reports), out)
    print(f'Written to {out}.')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='work directory of a training, or METHOD_epochs.jsonl')
    parser.add_argument('--epoch', type=int, help='epoch of the plot by class (default: the last epoch)')
    parser.add_argument('--out', type=Path,
                        help='image file to write (default: METHOD_epochs.png next to the reports)')
    return parser.parse_args()


def find_reports(path: Path) -> Path:
    """Return the file of reports that a path names or holds."""
    files = [path] if path.is_file() else sorted(path.glob('*_epochs.jsonl'))
    if len(files) != 1:
        raise MMKDError(
            f'{path} holds {len(files) or "no"} files METHOD_epochs.jsonl; name one that SAKD wrote.')
    return files[0]


def read_reports(path: Path) -> dict[int, dict]:
    """Read the reports of all epochs; the last report of an epoch that was repeated after resuming counts."""
    reports = {}
    for line in path.read_text().splitlines():
        try:
            report = json.loads(line)
            reports[report['epoch']] = dict(
                spots=report['spots'], shares=report['shares'], seen=report['seen'], chosen=report['chosen'])
        except (ValueError, KeyError, TypeError):
            raise MMKDError(f'{path} is not a file of reports that SAKD wrote.') from None
    if not reports:
        raise MMKDError(f'{path} is empty: no epoch has ended yet.')
    return reports


def shares_by_class(report: dict) -> list[list[float]]:
    """Return for each class the shares of the samples with it that were distilled at every spot."""
    return [[chosen / seen if seen else float('nan') for chosen in row]
            for row, seen in zip(report['chosen'], report['seen'], strict=True)]


def plot(reports: dict[int, dict], epoch: int, out: Path) -> None:
    """Draw the shares over epochs, and by class in one epoch."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    spots = reports[epoch]['spots']
    epochs = sorted(reports)
    overall = [reports[number]['shares'] for number in epochs]
    by_class = shares_by_class(reports[epoch])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout='constrained')
    for index, spot in enumerate(spots):
        left.plot(epochs, [100 * row[index] for row in overall], label=spot, marker='.')
    left.set(xlabel='epoch', ylabel='samples or images distilled (%)', ylim=(-3, 103))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    left.spines[['top', 'right']].set_visible(False)
    image = right.imshow(list(zip(*by_class, strict=True)), vmin=0, vmax=1, aspect='auto', cmap='viridis')
    right.set(xlabel='class', title=f'epoch {epoch}')
    right.set_yticks(range(len(spots)), spots)
    figure.colorbar(image, ax=right, label='share distilled')
    try:
        figure.savefig(out, dpi=130)
    except (OSError, ValueError) as error:  # the latter: no such format
        raise MMKDError(f'The picture {str(out)!r} cannot be written ({one_line(error)}).') from None
    plt.close(figure)


if __name__ == '__main__':
    run_tool(main)
