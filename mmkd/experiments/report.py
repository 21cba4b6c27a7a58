"""What comes out of a comparison: a summary, which is written as JSON, and tables in Markdown."""
import statistics
from collections.abc import Sequence
from typing import TypedDict

from rich.console import Console
from rich.markdown import Markdown
from scipy.stats import t as student_t

from .method_names import method_title
from .runs import SCORES, score

REFERENCES = ('student', 'kd')
"""The methods that all others are compared with: none, and the plainest way to use a teacher."""
MIN_TEACHER_LEAD = dict(bbox_mAP=0.10, top1=0.05)
"""A teacher with a smaller lead over the student alone has too little to teach for a comparison."""
VERDICTS = dict(better='Better than', worse='Worse than', same='Not distinguishable from')


class Spread(TypedDict):
    """A figure over seeds: mean, standard deviation (n - 1; ``None`` for one seed), and every value."""

    mean: float
    std: float | None
    per_seed: list[float]


class Row(Spread):
    """The results of a method: its score, the means of all metrics, its costs, the gap to the teacher.

    ``None`` is a figure that was not measured.
    """

    metrics: dict[str, float] | None
    seconds_per_iteration: float | None
    relative_step_time: float | None
    gap: dict[str, Spread] | None


class PairedDifference(Spread):
    """The differences of two methods with equal seeds, and what they say.

    ``ci95`` is Student's t interval (``None`` for one seed); the verdict is ``'same'`` when it includes zero.
    """

    ci95: list[float] | None
    verdict: str


class PairSummary(TypedDict):
    """All results of one teacher-student pair; metrics are between 0 and 1."""

    metric: str
    teacher: dict
    methods: dict[str, Row]
    paired_differences: dict[str, PairedDifference]


class Summary(TypedDict):
    """The content of ``comparison.json``."""

    command: str
    settings: dict
    environment: dict | None
    seeds: list[int]
    pairs: dict[str, PairSummary]


def summarize(results: dict[str, dict[str, list[dict]]], seeds: Sequence[int], command: str,
              settings: dict | None = None, environment: dict | None = None) -> Summary:
    """Summarize the results of a comparison.

    Args:
        results: Results of runs by pair and method, one for each seed; a single one for the ``teacher``.
        seeds: The seeds, in the order of the results.
        command: The command that repeats the comparison.
        settings: How the networks were trained.
        environment: What the step times depend on.
    """
    return dict(command=command, settings=settings or {}, environment=environment, seeds=list(seeds),
                pairs={name: _summarize_pair(runs) for name, runs in results.items()})


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compare two methods seed by seed.

    Args:
        values: Scores of a method.
        reference: Scores of another method with the same seeds.
    """
    difference = spread([value - other for value, other in zip(values, reference, strict=True)])
    if difference['std'] is None:
        return PairedDifference(**difference, ci95=None, verdict='same')
    number = len(values)
    half = float(student_t.ppf(0.975, number - 1)) * difference['std'] / number**0.5
    low, high = difference['mean'] - half, difference['mean'] + half
    verdict = 'better' if low > 0 else 'worse' if high < 0 else 'same'
    return PairedDifference(**difference, ci95=[low, high], verdict=verdict)


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the standard deviation of a figure over seeds."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.mean(values), std=std, per_seed=list(values))


def _summarize_pair(results: dict[str, list[dict]]) -> PairSummary:
    teacher = results['teacher'][0]
    methods = {name: runs for name, runs in results.items() if name != 'teacher'}
    metric, _ = score(teacher['metrics'])
    scores = {name: [run['metrics'][metric] for run in runs] for name, runs in methods.items()}
    # Other processes on the machine only add time, so the fastest seed counts.
    seconds = {name: min(run['seconds_per_iteration'] for run in runs) for name, runs in methods.items()}
    rows: dict[str, Row] = {}
    for name, runs in methods.items():
        names = set.intersection(*(set(run['metrics']) for run in runs))
        rows[name] = Row(
            **spread(scores[name]),
            metrics={key: statistics.mean(run['metrics'][key] for run in runs) for key in sorted(names)},
            seconds_per_iteration=seconds[name],
            relative_step_time=seconds[name] / seconds['student'],
            gap={key: spread([run['gap'][key] for run in runs]) for key in ('kl', 'agreement')})
    differences = {
        f'{name}-{reference}': paired_difference(scores[name], scores[reference])
        for index, reference in enumerate(REFERENCES) for name in methods
        if reference in methods and name not in REFERENCES[:index + 1]}
    return PairSummary(metric=metric, teacher=teacher, methods=rows, paired_differences=differences)


def print_markdown(text: str, console: Console | None = None) -> None:
    """Print Markdown: laid out on a terminal, as it is elsewhere."""
    console = console or Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        console.file.write(f'\n{text}\n')


def markdown(summary: Summary) -> str:
    """Return the tables of a summary in Markdown, in points of AP or per cent, and how to read them."""
    number = len(summary['seeds'])
    pairs = summary['pairs']
    parts = [_markdown_pair(pair_title(name), pair) for name, pair in pairs.items()]
    intervals = sum(len(pair['paired_differences']) for pair in pairs.values())
    if number > 1:
        notes = [f'± is the standard deviation over {number} seeds (n − 1); differences are paired by seed, '
                 "with Student's t 95 % intervals. n.d.: not distinguishable, the interval includes zero. No "
                 f'correction is made for the {intervals} intervals: where nothing differs, one in twenty '
                 'excludes zero by chance.']
    else:
        notes = [
            'One seed tells nothing about the spread, so no difference can be distinguished from chance.']
    rows = [row for pair in pairs.values() for row in pair['methods'].values()]
    if any(row['seconds_per_iteration'] for row in rows):
        notes.append('Step time: seconds per iteration (median of the fastest seed), relative to the student '
                     'alone.')
    if any(row['gap'] for row in rows):
        notes.append(
            'KL(T‖S) in nats and top-1 agreement compare the class outputs of teacher and student on the val '
            "images after training; those of detectors on the student's boxes (two-stage), or at all "
            "locations, weighted by the teacher's probability of an object (dense).")
    return '\n\n'.join([*parts, ' '.join(notes)]) + '\n'


def pair_title(name: str) -> str:
    """Return the title of a pair in tables."""
    return name.replace('_', ' ').replace('faster rcnn', 'Faster R-CNN').replace('retinanet', 'RetinaNet')


def _markdown_pair(title: str, pair: PairSummary) -> str:
    methods, differences = pair['methods'], pair['paired_differences']
    references = [name for name in REFERENCES if name in methods]
    metric, unit = pair['metric'], SCORES[pair['metric']]
    teacher, student = pair['teacher']['metrics'], methods['student']
    # The columns: their titles, and the teacher's cells.
    columns = {'': 'teacher', unit: f'{100 * teacher[metric]:.1f}'}
    if metric == 'bbox_mAP':
        columns['AP50'] = _percent(teacher, 'bbox_mAP_50')
    columns[f'{unit} by seed'] = ''
    columns.update({f'− {method_title(name)}': '' for name in references})
    if student['seconds_per_iteration']:
        columns['step time'] = ''
    if student['gap']:
        columns.update({'KL(T‖S)': '', 'agreement': ''})
    rows = [list(columns), list(columns.values())]
    for name, row in methods.items():
        cells = [method_title(name), _with_spread(row, 1, 100)]
        if metric == 'bbox_mAP':
            cells.append(_percent(row['metrics'], 'bbox_mAP_50'))
        cells.append(', '.join(f'{100 * value:.1f}' for value in row['per_seed']))
        cells += [_difference(differences.get(f'{name}-{reference}')) for reference in references]
        if 'step time' in columns:
            cells.append(f'{row["relative_step_time"]:.2f} ({_seconds(row["seconds_per_iteration"])})')
        if student['gap']:
            cells += [_with_spread(row['gap'][key], 3) if row['gap'] else '' for key in ('kl', 'agreement')]
        rows.append(cells)
    lead = teacher[metric] - student['mean']
    enough = lead >= MIN_TEACHER_LEAD[metric]
    teacher_line = f'- The teacher has {columns[unit]} {unit}, {_signed(lead)} against the student alone'
    teacher_line += '.' if enough else ': too little for the comparison to say anything.'
    lines = [f'### {title}', '', *_table(rows), '', teacher_line]
    for reference in references:
        for verdict, words in VERDICTS.items():
            names = [method_title(name) for name in methods if f'{name}-{reference}' in differences
                     and differences[f'{name}-{reference}']['verdict'] == verdict]
            if names:
                lines.append(f'- {words} {method_title(reference)}: {", ".join(names)}.')
    return '\n'.join(lines)


def _table(rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table, in columns that are aligned in plain text too."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ['-' * width for width in widths], *rows[1:]]
    return [f'| {" | ".join(map(str.ljust, row, widths))} |' for row in rows]


def _percent(metrics: dict[str, float] | None, key: str) -> str:
    return f'{100 * metrics[key]:.1f}' if metrics and key in metrics else ''


def _with_spread(figure: Spread, digits: int, scale: int = 1) -> str:
    text = f'{scale * figure["mean"]:.{digits}f}'
    return text if figure['std'] is None else f'{text} ± {scale * figure["std"]:.{digits}f}'


def _seconds(value: float | None) -> str:
    if value is None:
        return ''
    return f'{value:.2f} s' if value >= 0.1 else f'{1000 * value:.0f} ms'


def _difference(difference: PairedDifference | None) -> str:
    if difference is None:
        return ''
    text = _signed(difference['mean'])
    if difference['ci95']:
        text += f' ({" to ".join(map(_signed, difference["ci95"]))})'
    return f'{text} n.d.' if difference['verdict'] == 'same' else text


def _signed(value: float) -> str:
    return f'{100 * value:+.1f}'.replace('-', '−')
