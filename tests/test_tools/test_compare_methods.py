"""The comparison of all methods: what it plans, and what it says about results."""
import json
import subprocess
import sys

import pytest

from tests.tiny import REPO, load_tool

cm = load_tool('analysis_tools/compare_methods.py')
st = cm.st


def arguments(tmp_path, *words):
    return cm.parse_args(['--out', str(tmp_path / 'out'), '--data', str(tmp_path / 'digits'), *words])


def test_help_needs_nothing_but_python():
    done = subprocess.run(
        [sys.executable, '-I', '-S', REPO / 'tools/analysis_tools/compare_methods.py', '--help'],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'shake_alone' in done.stdout


def test_plan_of_everything(tmp_path):
    stages = cm.plan(arguments(tmp_path))
    assert len(stages) == 2 * (1 + 3 * 8)
    assert len({stage.work_dir for stage in stages}) == len(stages)
    for teacher, *students in (stages[:25], stages[25:]):
        assert teacher.method == 'teacher' and teacher.metric == 'coco/bbox_mAP' and not teacher.train
        assert [stage.seed for stage in students] == [0] * 8 + [1] * 8 + [2] * 8
        # The same budget for all: config, length and options; only --distill and its settings differ.
        for stage in students:
            assert (stage.config, stage.epochs, stage.iterations) == (
                students[0].config, students[0].epochs, students[0].iterations)
            assert stage.options == {**students[0].options, 'randomness.seed': stage.seed}
            assert stage.metric == 'gap/kl'
            assert stage.test == ('--teacher', teacher.config, '--teacher-checkpoint', teacher.checkpoint)
        alone, kd = students[:2]
        assert alone.method == 'student' and not alone.train and not alone.train_options
        assert kd.train == ('--distill', 'kd', *kd.test)
        assert kd.train_options['model.methods.kd.temperature'] == 1.0
        placements = [stage.train_options['model.methods.shake.placement'] for stage in students[5:8]]
        assert placements == ['student', 'teacher', 'alone']
        assert {stage.train[1] for stage in students[5:8]} == {'shake'}


def test_plan_of_a_part(tmp_path):
    stages = cm.plan(arguments(
        tmp_path, '--detectors', 'retinanet', '--methods', 'sokd', '--seeds', '1', '--first-seed', '100',
        '--smoke'))
    assert [(stage.method, stage.seed) for stage in stages] == [
        ('teacher', 0), ('student', 100), ('sokd', 100)]
    assert {stage.iterations for stage in stages} == {3}
    assert {stage.options['train_cfg.val_interval'] for stage in stages} == {1}


def test_other_settings_are_not_mixed(tmp_path, monkeypatch):
    args = arguments(tmp_path, '--detectors', 'faster_rcnn', '--seeds', '1')
    for stage in cm.plan(args):
        st.write_json(stage.work_dir / 'settings.json', stage.settings)
        st.check_settings(stage)
    monkeypatch.setitem(cm.SETTINGS['faster_rcnn'], 'weight', 2.0)
    for stage in cm.plan(args):
        if stage.method in ('teacher', 'student'):
            st.check_settings(stage)
        else:
            with pytest.raises(st.StageError, match='other settings .method_settings.'):
                st.check_settings(stage)


def test_command_is_the_same_in_any_checkout(tmp_path):
    command = cm.command(arguments(tmp_path, '--methods', 'kd', '--smoke'))
    assert command == (
        'python tools/analysis_tools/compare_methods.py --detectors faster_rcnn retinanet '
        '--methods student kd --seeds 3 --first-seed 0 --smoke')


def runs(*aps, seconds=1.0, kl=0.5, agreement=0.8):
    # The fastest seed counts.
    return [dict(metrics=dict(bbox_mAP=ap, bbox_mAP_50=ap + 0.2), seconds_per_iteration=seconds + number,
                 gap=dict(kl=kl + 0.1 * number, agreement=agreement)) for number, ap in enumerate(aps)]


def made_up(number=3):
    """KD is clearly better than the student alone, SOKD worse, and DML not to be told from either."""
    results = dict(
        teacher=[dict(metrics=dict(bbox_mAP=0.80, bbox_mAP_50=0.95), seconds_per_iteration=2.0)],
        student=runs(0.40, 0.50, 0.60)[:number],
        kd=runs(0.45, 0.54, 0.66, seconds=1.5)[:number],
        dml=runs(0.44, 0.45, 0.70)[:number],
        sokd=runs(0.30, 0.41, 0.50)[:number])
    return cm.summarise(dict(faster_rcnn=results), range(number), dict(command='…'))


def test_summary():
    summary = made_up()
    assert json.loads(json.dumps(summary)) == summary
    assert summary['command'] == '…' and summary['seeds'] == [0, 1, 2]
    part = summary['detectors']['faster_rcnn']
    kd = part['methods']['kd']
    assert kd['bbox_mAP'] == pytest.approx(0.55)
    assert kd['bbox_mAP_50'] == pytest.approx(0.75)
    assert kd['per_seed'] == [0.45, 0.54, 0.66]
    assert kd['relative_step_time'] == pytest.approx(1.5)
    assert kd['gap']['kl'] == dict(
        mean=pytest.approx(0.6), std=pytest.approx(0.1), per_seed=pytest.approx([0.5, 0.6, 0.7]))
    assert part['methods']['student']['relative_step_time'] == 1
    pairs = part['paired_differences']
    assert list(pairs) == ['kd-student', 'dml-student', 'sokd-student', 'dml-kd', 'sokd-kd']
    assert {name: pair['verdict'] for name, pair in pairs.items()} == {
        'kd-student': 'better', 'dml-student': 'same', 'sokd-student': 'worse', 'dml-kd': 'same',
        'sokd-kd': 'worse'}
    assert pairs['kd-student']['mean'] == pytest.approx(0.05)
    assert pairs['kd-student']['ci95'] == pytest.approx([0.02516, 0.07484], abs=1e-5)


def test_differences_below_the_spread_are_called_so():
    lines = cm.markdown(made_up()).splitlines()
    assert '- Better than student alone: KD.' in lines
    assert '- Worse than student alone: SOKD.' in lines
    assert '- Not distinguishable from student alone: DML.' in lines
    assert '- Not distinguishable from KD: DML.' in lines
    assert '- Worse than KD: SOKD.' in lines
    row, = (line for line in lines if line.startswith('| DML'))
    assert row.count('n.d.') == 2
    row, = (line for line in lines if line.startswith('| KD'))
    assert [cell.strip() for cell in row.split('|')[1:-1]] == [
        'KD', '55.0 ± 10.5', '45.0, 54.0, 66.0', '+5.0 (+2.5 to +7.5)', '', '1.50 (1.50 s)', '0.600 ± 0.100',
        '0.800 ± 0.000']
    columns = {line.count('|') for line in lines if line.startswith('|')}
    assert columns == {9}
    assert '- The teacher has 80.0 AP, +30.0 against the student alone.' in lines
    assert 'the 5 intervals' in lines[-1]


def test_one_seed_distinguishes_nothing():
    text = cm.markdown(made_up(1))
    assert '±' not in text and 'Better' not in text and 'Worse' not in text
    assert '- Not distinguishable from student alone: KD, DML, SOKD.' in text
    assert 'One seed tells nothing about the spread' in text


def test_a_teacher_without_a_lead_is_told():
    summary = made_up()
    summary['detectors']['faster_rcnn']['teacher']['metrics']['bbox_mAP'] = 0.55
    assert '+5.0 against the student alone: too little' in cm.markdown(summary)


def test_a_detector_that_finds_nothing_has_ap_0(tmp_path, monkeypatch):
    def run_tool(stage, lock, tool, *_):
        log, record = 'train/vis_data/scalars.json', dict(loss=1.0, time=0.5, step=3)
        if tool == 'test.py':
            log, record = 'test/run/run.json', {'gap/kl': 0.4, 'gap/agreement': 0.7, 'time': 0.1}
        (stage.work_dir / log).parent.mkdir(parents=True)
        (stage.work_dir / log).write_text(json.dumps(record))

    monkeypatch.setattr(st, 'run_tool', run_tool)
    _, student, *_ = cm.plan(arguments(tmp_path))
    st.run_stage(student, None, None)
    assert student.result() == dict(
        metrics=dict(bbox_mAP=0.0, bbox_mAP_50=0.0), seconds_per_iteration=0.5,
        gap=dict(kl=0.4, agreement=0.7))


def test_smoke_run_goes_on_where_it_was_interrupted(run, tmp_path, monkeypatch, capsys):
    """In this process: only starting the tools is left out."""
    started = []

    def run_tool(stage, lock, tool, words, options, show=None):
        started.append((stage.method, tool))
        if started[-1:] == interrupted:
            interrupted.clear()
            raise KeyboardInterrupt
        options = {**options, **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')}}
        ended = run(tool, *words, '--cfg-options', *(f'{key}={value}' for key, value in options.items()))
        assert ended.code == 0, ended.err

    monkeypatch.setattr(st, 'run_tool', run_tool)
    monkeypatch.setattr(st.signal, 'signal', lambda *_: None)
    args = arguments(tmp_path, '--smoke', '--detectors', 'faster_rcnn', '--methods', 'shake_teacher',
                     '--seeds', '1')
    interrupted = [('student', 'test.py')]
    with pytest.raises(SystemExit, match='go on'):
        st.run(args, cm.plan, cm.report)
    assert started == [('teacher', 'train.py'), ('student', 'train.py'), ('student', 'test.py')]
    started.clear()
    st.run(args, cm.plan, cm.report)
    assert started == [
        ('student', 'train.py'), ('student', 'test.py'), ('shake_teacher', 'train.py')]

    summary = json.loads((args.work_dir / 'comparison.json').read_text())
    methods = summary['detectors']['faster_rcnn']['methods']
    assert list(methods) == ['student', 'shake_teacher']
    for row in methods.values():
        assert row['gap']['kl']['mean'] > 0
        assert 0 <= row['gap']['agreement']['mean'] <= 1
        assert row['seconds_per_iteration'] > 0
    assert summary['settings']['iterations'] == dict(faster_rcnn=dict(teacher=3, students=3))
    assert '| SHAKE (teacher) |' in (args.work_dir / 'comparison.md').read_text()

    started.clear()
    st.run(args, cm.plan, cm.report)
    assert started == []

    # Measured while training and afterwards, the gap is the same.
    *_, shake = cm.plan(args)
    record = st.test(shake, None)
    assert record['gap/kl'] == pytest.approx(shake.result()['gap']['kl'], rel=1e-4)
    assert record['coco/bbox_mAP'] == shake.result()['metrics']['bbox_mAP']
