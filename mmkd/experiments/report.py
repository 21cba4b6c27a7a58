"""What comes out of a comparison: a summary, which is written as JSON, and tables in Markdown."""
import statistics
from collections.abc import Sequence
from typing import TypedDict

from rich.console import Console
from rich.markdown import Markdown

from .intervals import POWER, PairedDifference, Spread, holm, paired_difference, spread
from .method_names import method_title
from .runs import SCORES, score

REFERENCES = ('student', 'kd')
"""The methods that all others are compared with: none, and the plainest way to use a teacher."""
MIN_TEACHER_LEAD = dict(bbox_mAP=0.10, top1=0.05)
"""A teacher with a smaller lead over the student alone has too little to teach for a comparison."""
VERDICTS = dict(better='Better than', worse='Worse than', same='Not distinguishable from')


class Row(Spread):
    """The results of a method: its score, the means of all metrics, its costs, the gap to the teacher.

    ``seeds`` are those that are finished. ``None`` is a figure that was not measured.
    """

    seeds: list[int]
    metrics: dict[str, float] | None
    seconds_per_iteration: float | None
    relative_step_time: float | None
    gap: dict[str, Spread] | None


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


def summarize(results: dict[str, dict[str, dict[int, dict]]], seeds: Sequence[int], command: str,
              settings: dict | None = None, environment: dict | None = None) -> Summary:
    """Summarize the results of a comparison, as far as it is finished.

    Args:
        results: Results of the finished runs by pair, method, and seed. Pairs whose ``teacher`` or
            ``student`` has no result are left out.
        seeds: The seeds of the comparison.
        command: The command that repeats the comparison.
        settings: How the networks were trained.
        environment: What the step times depend on.
    """
    pairs = {name: _summarize_pair(runs) for name, runs in results.items()
             if runs.get('teacher') and runs.get('student')}
    return dict(command=command, settings=settings or {}, environment=environment, seeds=list(seeds),
                pairs=pairs)


def compare_rows(rows: dict[str, Row]) -> dict[str, PairedDifference]:
    """Compare every method with the student alone and with KD, on the seeds that both have finished.

    The p-values are corrected for all comparisons of the table by Holm's procedure.

    Args:
        rows: The results by method.

    Returns:
        dict: Differences by ``'METHOD-REFERENCE'``.
    """
    differences: dict[str, PairedDifference] = {}
    for index, reference in enumerate(REFERENCES):
        for name, row in rows.items():
            if reference not in rows or name in REFERENCES[:index + 1]:
                continue
            of_reference = dict(zip(rows[reference]['seeds'], rows[reference]['per_seed'], strict=True))
            of_method = dict(zip(row['seeds'], row['per_seed'], strict=True))
            common = [seed for seed in of_method if seed in of_reference]
            if common:
                differences[f'{name}-{reference}'] = paired_difference(
                    [of_method[seed] for seed in common], [of_reference[seed] for seed in common])
    holm(differences.values())
    return differences


def _summarize_pair(results: dict[str, dict[int, dict]]) -> PairSummary:
    teacher, = results['teacher'].values()
    methods = {name: runs for name, runs in results.items() if name != 'teacher' and runs}
    metric, _ = score(teacher['metrics'])
    # Other processes on the machine only add time, so the fastest seed counts.
    seconds = {name: min(run['seconds_per_iteration'] for run in runs.values())
               for name, runs in methods.items()}
    rows: dict[str, Row] = {}
    for name, by_seed in methods.items():
        runs = list(by_seed.values())
        names = set.intersection(*(set(run['metrics']) for run in runs))
        rows[name] = Row(
            **spread([run['metrics'][metric] for run in runs]),
            seeds=list(by_seed),
            metrics={key: statistics.mean(run['metrics'][key] for run in runs) for key in sorted(names)},
            seconds_per_iteration=seconds[name],
            relative_step_time=seconds[name] / seconds['student'],
            gap={key: spread([run['gap'][key] for run in runs]) for key in ('kl', 'agreement')})
    return PairSummary(metric=metric, teacher=teacher, methods=rows, paired_differences=compare_rows(rows))


def print_markdown(text: str, console: Console | None = None) -> None:
    """Print Markdown: laid out on a terminal, as it is elsewhere."""
    console = console or Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        console.file.write(f'\n{text}\n')


def markdown(summary: Summary) -> str:
    """Return the tables of a summary in Markdown, in points of AP or per cent, and how to read them."""
    pairs = summary['pairs']
    parts = [_markdown_pair(pair_title(name), pair, len(summary['seeds'])) for name, pair in pairs.items()]
    if not pairs:
        return 'No pair has a teacher and a student yet.\n'
    numbers = {len(row['seeds']) for pair in pairs.values() for row in pair['methods'].values()}
    fewest, most = min(numbers), max(numbers)
    if most > 1:
        seeds = most if fewest == most else f'{fewest} to {most}'
        notes = [f'± is the standard deviation over {seeds} seeds (n − 1); differences are paired by seed, '
                 "with Student's t 95 % intervals, each for itself. n.d.: not distinguishable, the interval "
                 'includes zero. The sentences below a table are corrected for all its comparisons (Holm, '
                 'level 5 %); "without correction also" lists methods whose interval alone excludes zero.']
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


def _markdown_pair(title: str, pair: PairSummary, number: int) -> str:
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
            line = _statement(f'{words} {method_title(reference)}', verdict, {
                method_title(name): differences[f'{name}-{reference}'] for name in methods
                if f'{name}-{reference}' in differences})
            lines += [line] if line else []
    lines += _power(differences, unit)
    unfinished = [f'{method_title(name)} ({len(row["seeds"])})' for name, row in methods.items()
                  if len(row['seeds']) < number]
    if unfinished:
        lines.append(f'- **Unfinished**: of {number} seeds, fewer are finished with {", ".join(unfinished)}.')
    return '\n'.join(lines)


def _statement(words: str, verdict: str, differences: dict[str, PairedDifference]) -> str:
    """Return a sentence about the methods with a verdict; empty if there are none.

    Args:
        words: For instance ``'Better than KD'``.
        verdict: The verdict.
        differences: Differences from one reference, by the methods' titles.
    """
    alone = [title for title, difference in differences.items() if difference['verdict'] == verdict]
    corrected = [title for title in alone if differences[title]['corrected_verdict'] == verdict]
    only = [title for title in alone if title not in corrected]
    if corrected and only:
        return f'- {words}: {", ".join(corrected)}; without correction also {", ".join(only)}.'
    if only:
        return f'- {words} only without correction: {", ".join(only)}.'
    return f'- {words}: {", ".join(corrected)}.' if corrected else ''


def _power(differences: dict[str, PairedDifference], unit: str) -> list[str]:
    """Return a sentence about the smallest differences that could have been shown."""
    detectable = [difference['detectable'] for difference in differences.values()
                  if difference['detectable'] is not None]
    if not detectable:
        return []
    low, middle, high = (f'{100 * value:.1f}' for value in (
        min(detectable), statistics.median(detectable), max(detectable)))
    between = f' ({low} to {high}, depending on the comparison)' if low != high else ''
    return [f'- Power: with the measured spread, a true difference of {middle} {unit}{between} is found with '
            f'a probability of {POWER:.0%} at the level for {len(detectable)} comparisons; smaller ones are '
            'likely to be missed.']


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
