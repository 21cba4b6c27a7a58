import json

import pytest

from tests.helpers.tiny import load_tool

qr = load_tool('quickstart_report.py')


def metrics(*values):
    return [dict(bbox_mAP=value, bbox_mAP_50=value + 0.2) for value in values]


def three_seeds():
    return dict(
        teacher=metrics(0.70)[0],
        student=metrics(0.40, 0.50, 0.60),
        kd=metrics(0.45, 0.54, 0.66),
        shake=metrics(0.46, 0.56, 0.66))


def test_means_and_spread_over_three_seeds():
    summary = qr.summarize(three_seeds(), [0, 1, 2], dict(epochs=4))
    assert summary['teacher']['bbox_mAP'] == 0.70
    student = summary['student']
    assert student['bbox_mAP'] == pytest.approx(0.50)
    assert student['bbox_mAP_std'] == pytest.approx(0.10)  # n - 1: sqrt((0.01 + 0 + 0.01) / 2)
    assert student['bbox_mAP_50'] == pytest.approx(0.70)
    assert student['per_seed'] == [0.40, 0.50, 0.60]
    assert summary['seeds'] == [0, 1, 2]
    assert summary['settings'] == dict(epochs=4)


def test_paired_differences_and_interval():
    pairs = qr.summarize(three_seeds(), [0, 1, 2], {})['paired_differences']
    assert list(pairs) == ['kd-student', 'shake-student', 'shake-kd']
    kd = pairs['kd-student']
    assert kd['per_seed'] == pytest.approx([0.05, 0.04, 0.06])
    assert kd['mean'] == pytest.approx(0.05)
    assert kd['std'] == pytest.approx(0.01)
    # Student's t with two degrees of freedom: 4.3027 * 0.01 / sqrt(3) = 0.02484.
    assert kd['ci95'] == pytest.approx([0.02516, 0.07484], abs=1e-5)
    assert pairs['shake-student']['ci95'] == pytest.approx([0.06 - 0, 0.06 + 0])
    assert pairs['shake-kd']['mean'] == pytest.approx(0.01)


def test_one_seed_has_no_spread():
    results = dict(
        teacher=metrics(0.7)[0], student=metrics(0.5), kd=metrics(0.55), shake=metrics(0.58))
    summary = qr.summarize(results, [0], {})
    assert summary['student']['bbox_mAP_std'] is None
    pair = summary['paired_differences']['shake-student']
    assert pair['std'] is None
    assert pair['ci95'] is None
    assert pair['mean'] == pytest.approx(0.08)
    assert json.loads(json.dumps(summary)) == summary
    assert '±' not in qr.format_table(summary)
    assert 'interval' not in qr.format_table(summary)


def test_unequal_numbers_of_seeds_are_an_error():
    with pytest.raises(ValueError):
        qr.paired_difference([0.5, 0.6], [0.5])


def test_table_is_in_ap_points():
    lines = qr.format_table(qr.summarize(three_seeds(), [0, 1, 2], {})).splitlines()
    assert lines[1].split() == ['teacher', '70.0', '90.0']
    assert lines[2].split() == ['student', 'alone', '50.0', '±', '10.0', '70.0']
    line, = (line for line in lines if line.startswith('KD − student alone'))
    assert '+5.0 AP' in line and '+2.5 to +7.5' in line


@pytest.mark.parametrize(('teacher', 'warned'), [(0.58, True), (0.62, False)])
def test_teacher_without_a_lead_is_said(teacher, warned):
    results = dict(three_seeds(), teacher=metrics(teacher)[0])
    assert ('too little' in qr.format_table(qr.summarize(results, [0, 1, 2], {}))) is warned


def write_log(work_dir, run, *records):
    folder = work_dir / run / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return folder / 'scalars.json'


def test_log_of_a_resumed_run(tmp_path):
    killed = write_log(
        tmp_path, '20260101_000000', dict(loss=3.0, step=25), dict(loss=2.5, step=50),
        {'coco/bbox_mAP': 0.1, 'step': 1}, dict(loss=2.0, step=75))
    with killed.open('a') as file:
        file.write('{"loss": 1.9, "st')
    write_log(
        tmp_path, '20260101_010000', dict(loss=2.1, step=75), {'coco/bbox_mAP': 0.2, 'step': 2})
    train, val = qr.read_log(tmp_path)
    assert {step: record['loss'] for step, record in train.items()} == {25: 3.0, 50: 2.5, 75: 2.1}
    assert {epoch: qr.metrics(record)['bbox_mAP'] for epoch, record in val.items()} == {
        1: 0.1, 2: 0.2}


def test_own_loss_leaves_out_what_distilling_adds():
    record = {
        'loss': 5.0, 'loss_cls': 1.0, 'loss_rpn_bbox': 0.5, 'shake.loss_student': 3.5, 'lr': 0.1}
    assert qr.detection_loss(record) == 1.5


def test_curves_are_drawn_over_the_steps_that_all_seeds_have(tmp_path):
    for seed, steps in enumerate([(25, 50), (25, 50, 75)]):
        write_log(tmp_path / f'student{seed}', 'run',
                  *(dict(loss=1.0, loss_cls=1.0 + seed, step=step) for step in steps),
                  {'coco/bbox_mAP': 0.5, 'step': 1})
    folders = [tmp_path / 'student0', tmp_path / 'student1']
    logs = [qr.read_log(folder)[0] for folder in folders]
    assert qr._mean_curve(logs, qr.detection_loss) == ([25, 50], [1.5, 1.5])
    qr.plot_curves(tmp_path / 'curves.png', dict(student=folders))
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_detection_is_right_by_digit_and_place():
    truths = [('3', 0, 0, 10, 10)]
    assert qr.is_right(('3', 0, 0, 10, 8), truths)
    assert not qr.is_right(('5', 0, 0, 10, 10), truths)
    assert not qr.is_right(('3', 0, 6, 10, 16), truths)
    assert not qr.is_right(('3', 0, 0, 10, 10), [])
