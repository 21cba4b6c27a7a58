"""What is said about results."""
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from mmkd.experiments.intervals import paired_difference
from mmkd.experiments.report import compare_rows, markdown, print_markdown, summarize
from tests.helpers.tiny import REPO

BENCHMARKS = [path for path in sorted((REPO / 'docs/benchmarks').glob('*.json')) if path.name != 'speed.json']


def runs(*aps, seconds=1.0, kl=0.5, agreement=0.8):
    # The fastest seed counts.
    return {number: dict(metrics=dict(bbox_mAP=ap, bbox_mAP_50=ap + 0.2),
                         seconds_per_iteration=seconds + number,
                         gap=dict(kl=kl + 0.1 * number, agreement=agreement))
            for number, ap in enumerate(aps)}


def made_up(number=3, teacher=0.80):
    """KD is clearly better than the student alone, SOKD worse, and DML not distinguishable from either."""
    results = dict(
        teacher={0: dict(metrics=dict(bbox_mAP=teacher, bbox_mAP_50=0.95), seconds_per_iteration=2.0)},
        student=runs(*(0.40, 0.50, 0.60)[:number]),
        kd=runs(*(0.45, 0.54, 0.66)[:number], seconds=1.5),
        dml=runs(*(0.44, 0.45, 0.70)[:number]),
        sokd=runs(*(0.30, 0.41, 0.50)[:number]))
    return summarize(dict(faster_rcnn=results), range(number), '…', dict(epochs=4))


def cells(summary, title):
    row, = (line for line in markdown(summary).splitlines() if line.startswith(f'| {title} '))
    return [cell.strip() for cell in row.split('|')[1:-1]]


def test_summary():
    summary = made_up()
    assert json.loads(json.dumps(summary)) == summary
    assert summary['command'] == '…' and summary['seeds'] == [0, 1, 2]
    assert summary['settings'] == dict(epochs=4)
    part = summary['pairs']['faster_rcnn']
    assert part['teacher']['metrics']['bbox_mAP'] == 0.80
    student, kd = part['methods']['student'], part['methods']['kd']
    assert part['metric'] == 'bbox_mAP'
    assert kd['mean'] == pytest.approx(0.55)
    assert kd['per_seed'] == [0.45, 0.54, 0.66]
    assert student['mean'] == pytest.approx(0.50)
    assert student['std'] == pytest.approx(0.10)  # n - 1: sqrt((0.01 + 0 + 0.01) / 2)
    assert student['metrics'] == dict(bbox_mAP=pytest.approx(0.50), bbox_mAP_50=pytest.approx(0.70))
    assert student['per_seed'] == [0.40, 0.50, 0.60] and student['seeds'] == [0, 1, 2]
    assert kd['relative_step_time'] == pytest.approx(1.5)
    assert kd['gap']['kl'] == dict(
        mean=pytest.approx(0.6), std=pytest.approx(0.1), per_seed=pytest.approx([0.5, 0.6, 0.7]))
    assert part['methods']['student']['relative_step_time'] == 1
    pairs = part['paired_differences']
    assert list(pairs) == ['kd-student', 'dml-student', 'sokd-student', 'dml-kd', 'sokd-kd']
    assert {name: pair['verdict'] for name, pair in pairs.items()} == {
        'kd-student': 'better', 'dml-student': 'same', 'sokd-student': 'worse', 'dml-kd': 'same',
        'sokd-kd': 'worse'}
    assert pairs['kd-student']['per_seed'] == pytest.approx([0.05, 0.04, 0.06])
    assert pairs['kd-student']['mean'] == pytest.approx(0.05)
    assert pairs['kd-student']['std'] == pytest.approx(0.01)
    # Student's t with two degrees of freedom: 4.3027 * 0.01 / sqrt(3) = 0.02484.
    assert pairs['kd-student']['ci95'] == pytest.approx([0.02516, 0.07484], abs=1e-5)


def test_equal_differences_have_an_interval_without_width():
    pair = paired_difference([0.46, 0.56, 0.66], [0.40, 0.50, 0.60])
    assert pair['ci95'] == pytest.approx([0.06, 0.06])
    exact = paired_difference([0.75, 0.5], [0.5, 0.25])
    assert (exact['ci95'], exact['verdict']) == ([0.25, 0.25], 'better')


def test_published_intervals():
    """The quickstart's figures in docs/benchmarks/quickstart.md."""
    student, kd = [0.414, 0.437, 0.390], [0.486, 0.506, 0.381]
    pair = paired_difference(kd, student)
    assert [round(100 * value, 1) for value in pair['per_seed']] == [7.2, 6.9, -0.9]
    assert round(100 * pair['mean'], 1) == 4.4
    assert [round(100 * value, 1) for value in pair['ci95']] == [-7.0, 15.8]
    pair = paired_difference([0.484, 0.492, 0.409], student)
    assert [round(100 * value, 1) for value in (pair['mean'], *pair['ci95'])] == [4.8, -1.7, 11.3]


def test_unequal_numbers_of_seeds_are_an_error():
    with pytest.raises(ValueError):
        paired_difference([0.5, 0.6], [0.5])


def test_differences_below_the_spread_are_called_so():
    lines = markdown(made_up()).splitlines()
    # The third of five p-values, KD's 0.0131, is corrected to 0.039.
    assert '- Better than student alone: KD.' in lines
    assert '- Worse than student alone: SOKD.' in lines
    assert '- Not distinguishable from student alone: DML.' in lines
    assert '- Not distinguishable from KD: DML.' in lines
    assert '- Worse than KD: SOKD.' in lines
    assert '| '.join(cells(made_up(), 'DML')).count('n.d.') == 2
    assert cells(made_up(), 'KD') == [
        'KD', '55.0 ± 10.5', '75.0', '45.0, 54.0, 66.0', '+5.0 (+2.5 to +7.5)', '', '1.50 (1.50 s)',
        '0.600 ± 0.100', '0.800 ± 0.000']
    assert cells(made_up(), 'teacher')[:3] == ['teacher', '80.0', '95.0']
    columns = {line.count('|') for line in lines if line.startswith('|')}
    assert columns == {10}
    assert len({len(line) for line in lines if line.startswith('|')}) == 1
    assert '- The teacher has 80.0 AP, +30.0 against the student alone.' in lines
    assert 'each for itself' in lines[-1]


def test_one_seed_distinguishes_nothing():
    summary = made_up(1)
    student = summary['pairs']['faster_rcnn']['methods']['student']
    pair = summary['pairs']['faster_rcnn']['paired_differences']['kd-student']
    assert student['std'] is None
    assert {pair[key] for key in ('std', 'ci95', 'p', 'corrected_p', 'detectable')} == {None}
    assert pair['mean'] == pytest.approx(0.05)
    text = markdown(summary)
    assert '±' not in text and 'Better' not in text and 'Worse' not in text and 'interval' not in text
    assert '- Not distinguishable from student alone: KD, DML, SOKD.' in text
    assert 'One seed tells nothing about the spread' in text


def test_a_partial_table_compares_common_seeds():
    results = dict(
        teacher={0: dict(metrics=dict(bbox_mAP=0.9), seconds_per_iteration=2.0)},
        student=runs(0.40, 0.50, 0.60, 0.55), kd=runs(0.46, 0.55, 0.66, 0.62), dml=runs(0.3), sokd={})
    del results['kd'][1]  # a training that failed
    pairs = dict(retinanet=results, unfinished=dict(teacher={}, student={}), new={})
    part = summarize(pairs, range(5), '…')
    assert list(part['pairs']) == ['retinanet']
    pair = part['pairs']['retinanet']
    assert list(pair['methods']) == ['student', 'kd', 'dml'] and pair['methods']['kd']['seeds'] == [0, 2, 3]
    kd, dml = pair['paired_differences']['kd-student'], pair['paired_differences']['dml-kd']
    assert kd['per_seed'] == pytest.approx([0.06, 0.06, 0.07])
    assert dml['per_seed'] == pytest.approx([-0.16])
    # A comparison of one seed is not a test, so there is nothing to correct for.
    assert kd['corrected_p'] == kd['p']
    text = markdown(part)
    assert '- **Unfinished**: of 5 seeds, fewer are finished with student alone (4), KD (3), DML (1).' in text
    assert 'standard deviation over 1 to 4 seeds' in text
    assert markdown(summarize(dict(new={}), range(5), '…')) == 'No pair has a teacher and a student yet.\n'


def test_statements_that_only_hold_without_correction():
    """Three seeds and nine comparisons: a p-value of 0.013 says nothing any more."""
    methods = {f'sokd:weight={number}': runs(0.44, 0.45, 0.70) for number in range(3)}
    results = dict(
        teacher={0: dict(metrics=dict(bbox_mAP=0.9), seconds_per_iteration=2.0)},
        student=runs(0.40, 0.50, 0.60), kd=runs(0.45, 0.54, 0.66), dml=runs(0.451, 0.55, 0.65), **methods)
    text = markdown(summarize(dict(faster_rcnn=results), range(3), '…'))
    assert '- Better than student alone: DML; without correction also KD.' in text
    results['dml'] = runs(0.44, 0.45, 0.70)
    text = markdown(summarize(dict(faster_rcnn=results), range(3), '…'))
    assert '- Better than student alone only without correction: KD.' in text
    assert 'Power: with the measured spread, a true difference of ' in text


@pytest.mark.parametrize(('teacher', 'warned'), [(0.55, True), (0.58, True), (0.62, False)])
def test_a_teacher_without_a_lead_is_told(teacher, warned):
    text = markdown(made_up(teacher=teacher))
    assert f'+{100 * (teacher - 0.5):.1f} against the student alone' in text
    assert ('student alone: too little' in text) is warned


def test_markdown_is_laid_out_on_a_terminal_only():
    text = markdown(made_up())
    plain, laid_out = io.StringIO(), io.StringIO()
    print_markdown(text, Console(file=plain, force_terminal=False, width=40))
    assert text in plain.getvalue()
    print_markdown(text, Console(file=laid_out, force_terminal=True, width=160, color_system=None))
    assert '|' not in laid_out.getvalue() and '55.0 ± 10.5' in laid_out.getvalue()


@pytest.mark.parametrize('path', BENCHMARKS, ids=lambda path: path.name)
def test_published_figures_have_the_same_schema(path: Path):
    summary = json.loads(path.read_text())
    assert set(summary) - {'note', 'superseded'} == set(made_up())
    for pair in summary['pairs'].values():
        expected = made_up()['pairs']['faster_rcnn']
        assert set(pair) == set(expected)
        for row in pair['methods'].values():
            assert set(row) == set(expected['methods']['kd'])
        computed = compare_rows(pair['methods'])
        assert set(computed) == set(pair['paired_differences'])
        for name, published in pair['paired_differences'].items():
            assert published == {
                key: pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, (float, list)) else value
                for key, value in computed[name].items()}
    assert all(f'\n| {row} ' in markdown(summary) for row in ('teacher', 'student alone', 'KD'))
