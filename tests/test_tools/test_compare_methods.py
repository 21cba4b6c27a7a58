"""The comparison of all methods: what it plans, and what it says about results."""
import dataclasses
import json
import subprocess
import sys
import threading

import pytest

from tests.helpers.tiny import REPO, load_tool

cm = load_tool('analysis_tools/compare_methods.py')
st = cm.st
FASTER_RCNN = 'configs/examples/digits/faster_rcnn_student.py'
CLASSIFIER = 'configs/examples/quickstart/classifier_student.py'


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
        tmp_path, 'configs/examples/digits/retinanet_student.py', '--methods', 'sokd', '--seeds', '1', '--first-seed',
        '100', '--smoke'))
    assert [(stage.method, stage.seed) for stage in stages] == [
        ('teacher', 0), ('student', 100), ('sokd', 100)]
    assert {stage.iterations for stage in stages} == {3}
    assert {stage.options['train_cfg.val_interval'] for stage in stages} == {1}


def test_other_settings_are_not_mixed(tmp_path, monkeypatch):
    args = arguments(tmp_path, FASTER_RCNN, '--seeds', '1')
    for stage in cm.plan(args):
        st.write_json(stage.work_dir / 'settings.json', stage.settings)
        st.check_settings(stage)
    read = st.read_config
    monkeypatch.setattr(st, 'read_config', lambda *words: dataclasses.replace(
        read(*words), settings=dict(proxies=dict(temperature=1.0, weight=2.0))))
    for stage in cm.plan(args):
        if stage.method in ('teacher', 'student'):
            st.check_settings(stage)
        else:
            with pytest.raises(st.StageError, match='other settings .method_settings.'):
                st.check_settings(stage)


def test_command_is_the_same_in_any_checkout(tmp_path):
    command = cm.command(arguments(
        tmp_path, CLASSIFIER, '--methods', 'kd', '--smoke', '--jobs', '2', '--cfg-options', 'a.b=1',
        'c=[1,2]'))
    assert command == (
        f'python tools/analysis_tools/compare_methods.py {CLASSIFIER} --methods student kd --seeds 3 '
        "--first-seed 0 --cfg-options a.b=1 'c=[1,2]' --jobs 2 --smoke")


def test_called_from_another_folder(tmp_path, monkeypatch):
    """A pair lies there, or else in the checkout."""
    (tmp_path / 'mine_student.py').write_text(f"_base_ = {str(REPO / CLASSIFIER)!r}")
    monkeypatch.chdir(tmp_path)
    args = arguments(tmp_path, 'mine_student.py', CLASSIFIER, '--methods', 'kd', '--seeds', '1', '--smoke')
    assert args.pairs == [str(tmp_path.resolve() / 'mine_student.py'), CLASSIFIER]
    monkeypatch.setattr(st.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(st, 'run_stages', lambda stages, session: planned.extend(stages))
    planned = []
    st.run(args, args.pairs, cm.checked_plan, lambda *_: None)
    assert [stage.settings['pair'] for stage in planned] == ['mine'] * 3 + ['classifier'] * 3
    assert {stage.config for stage in planned if stage.method != 'teacher'} == {
        tmp_path.resolve() / 'mine_student.py', REPO / CLASSIFIER}


def test_an_output_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'out').write_text('precious')
    monkeypatch.setattr(st.signal, 'signal', lambda *_: None)
    args = arguments(tmp_path, CLASSIFIER)
    with pytest.raises(SystemExit, match='cannot be written'):
        st.run(args, args.pairs, cm.plan, cm.report)


@pytest.mark.parametrize(('content', 'said'), [
    ("_base_ = '{root}/configs/_base_/schedules/crd_240e.py'", 'no training config'),
    ("_base_ = '{root}/{pair}'\nteacher = dict(config='none.py')", 'the teacher none.py'),
    ("_base_ = '{root}/configs/cifar/cifar10_resnet32x4_resnet8x4.py'\n"
     "train_dataloader = dict(dataset=dict(data_root='none'))", 'does not exist'),
    ('model = dict(', 'cannot be read')])
def test_pairs_that_cannot_be_trained(tmp_path, content, said):
    (tmp_path / 'pair.py').write_text(content.replace('{root}', str(REPO)).replace('{pair}', CLASSIFIER))
    with pytest.raises(st.StageError, match=said):
        cm.plan(arguments(tmp_path, str(tmp_path / 'pair.py'), '--smoke'))


def test_where_things_lie_by_default():
    args = cm.parse_args([CLASSIFIER])
    assert args.work_dir == st.ROOT / 'work_dirs/compare_methods'
    assert st.digits_folder('digits_cls', args) == st.ROOT / 'data/digits_cls'
    smoke = cm.parse_args([CLASSIFIER, '--smoke'])
    assert smoke.work_dir == st.ROOT / 'work_dirs/compare_methods_smoke'


def test_options_go_to_teacher_and_students(tmp_path):
    stages = cm.plan(arguments(
        tmp_path, CLASSIFIER, '--methods', 'kd', '--seeds', '1', '--cfg-options', 'train_cfg.max_epochs=7'))
    assert [stage.method for stage in stages] == ['teacher', 'student', 'kd']
    for stage in stages:
        assert stage.options['train_cfg.max_epochs'] == '7'
        assert (stage.epochs, stage.iterations) == (7, 7 * (3000 // 64))
        assert stage.checkpoint.name == 'epoch_7.pth'
    assert stages[0].metric == 'accuracy/top1' and stages[2].teacher is stages[0]


@pytest.mark.parametrize(('words', 'said'), [
    (('configs/none.py', ), 'there is no config configs/none.py'),
    ((CLASSIFIER, CLASSIFIER), 'same name'),
    (('--cfg-options', 'a=1', 'b'), "'b' is not KEY=VALUE, without spaces"),
    (('--jobs', '0'), '--jobs must be at least 1')])
def test_bad_arguments_are_told(tmp_path, capsys, words, said):
    with pytest.raises(SystemExit):
        arguments(tmp_path, *words)
    assert said in capsys.readouterr().err


def test_any_method_and_several_together(tmp_path):
    stages = cm.plan(arguments(
        tmp_path, CLASSIFIER, '--methods', 'fitnet+shake_teacher', 'ab', '--seeds', '1'))
    assert [stage.method for stage in stages] == ['teacher', 'student', 'fitnet+shake_teacher', 'ab']
    both, ab = stages[2:]
    assert both.title.startswith('classifier, FitNet + SHAKE (teacher)')
    assert both.train[:3] == ('--distill', 'fitnet', 'shake')
    assert both.train_options['model.methods.shake.placement'] == 'teacher'
    assert ab.train_options['model.methods.ab.first_phase_epochs'] == 2
    sakd, = cm.plan(arguments(
        tmp_path, CLASSIFIER, '--methods', 'sakd:method=AT:strategy=random', '--seeds', '1'))[2:]
    assert sakd.title == 'classifier, SAKD (AT, random), seed 0'
    assert sakd.train[:2] == ('--distill', 'sakd')
    assert sakd.train_options['model.methods.sakd.strategy'] == 'random'
    assert sakd.work_dir.name == 'sakd-method-AT-strategy-random_seed0'
    with pytest.raises(st.StageError, match='not NAME:SETTING=VALUE'):
        cm.plan(arguments(tmp_path, CLASSIFIER, '--methods', 'sakd:AT'))
    with pytest.raises(st.StageError, match="no method 'fitnets'; the nearest names are 'fitnet'"):
        cm.plan(arguments(tmp_path, CLASSIFIER, '--methods', 'kd', 'fitnets'))


@pytest.mark.slow
def test_a_method_that_does_not_fit_is_told_before_anything_is_trained(tmp_path):
    args = arguments(
        tmp_path, 'configs/examples/digits/retinanet_student.py', '--methods', 'kd', 'pkd', 'dkd', '--smoke')
    with pytest.raises(st.StageError, match=r'RetinaNet, DKD, seed 0: DKD compares .* \(softmax\)'):
        cm.checked_plan(args)
    args.methods.remove('dkd')
    assert cm.checked_plan(args) == cm.plan(args)
    # What is finished needs no check.
    args.methods.append('dkd')
    for stage in cm.plan(args):
        if stage.method == 'dkd':
            st.write_json(stage.result_path, {})
    cm.checked_plan(args)


def test_a_first_stage_that_leaves_no_epoch_is_told(tmp_path):
    words = 'configs/examples/digits/retinanet_student.py', '--seeds', '1', '--methods'
    with pytest.raises(st.StageError, match='FT, seed 0: The first stage of ft takes 30 epochs,'):
        cm.checked_plan(arguments(tmp_path, *words, 'ft'))
    cm.checked_plan(arguments(tmp_path, *words, 'ft:first_phase_epochs=1'))
    *_, ft, sakd = cm.plan(arguments(
        tmp_path, CLASSIFIER, '--smoke', '--seeds', '1', '--methods', 'ft', 'sakd:method=FT'))
    assert ft.train_options['model.methods.ft.first_phase_epochs'] == 0
    assert sakd.train_options['model.methods.sakd.first_phase_epochs'] == 0


def test_settings_in_names_reach_the_check(tmp_path):
    args = arguments(tmp_path, CLASSIFIER, '--methods', 'sakd:method=nothing', '--seeds', '1')
    with pytest.raises(st.StageError, match="SAKD chooses .* not of 'nothing'"):
        cm.checked_plan(args)


def test_a_config_without_a_teacher_is_told(tmp_path):
    with pytest.raises(st.StageError, match='names no teacher'):
        cm.plan(arguments(tmp_path, 'configs/examples/quickstart/classifier_teacher.py'))


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
    return cm.summarize(dict(faster_rcnn=results), range(number), dict(command='…'))


def test_summary():
    summary = made_up()
    assert json.loads(json.dumps(summary)) == summary
    assert summary['command'] == '…' and summary['seeds'] == [0, 1, 2]
    part = summary['pairs']['faster_rcnn']
    kd = part['methods']['kd']
    assert part['metric'] == 'bbox_mAP'
    assert kd['mean'] == pytest.approx(0.55)
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
    summary['pairs']['faster_rcnn']['teacher']['metrics']['bbox_mAP'] = 0.55
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


@pytest.mark.slow
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
    args = arguments(tmp_path, FASTER_RCNN, '--smoke', '--methods', 'shake_teacher', '--seeds', '1')
    interrupted = [('student', 'test.py')]
    with pytest.raises(SystemExit, match='go on'):
        st.run(args, args.pairs, cm.plan, cm.report)
    assert started == [('teacher', 'train.py'), ('student', 'train.py'), ('student', 'test.py')]
    started.clear()
    st.run(args, args.pairs, cm.plan, cm.report)
    assert started == [
        ('student', 'train.py'), ('student', 'test.py'), ('shake_teacher', 'train.py')]

    summary = json.loads((args.work_dir / 'comparison.json').read_text())
    methods = summary['pairs']['faster_rcnn']['methods']
    assert list(methods) == ['student', 'shake_teacher']
    for row in methods.values():
        assert row['gap']['kl']['mean'] > 0
        assert 0 <= row['gap']['agreement']['mean'] <= 1
        assert row['seconds_per_iteration'] > 0
    assert summary['settings']['iterations'] == dict(faster_rcnn=dict(teacher=3, students=3))
    assert '| SHAKE (teacher) |' in (args.work_dir / 'comparison.md').read_text()

    started.clear()
    st.run(args, args.pairs, cm.plan, cm.report)
    assert started == []

    # Measured while training and afterward, the gap is the same.
    *_, shake = cm.plan(args)
    record = st.test(shake, None)
    assert record['gap/kl'] == pytest.approx(shake.result()['gap']['kl'], rel=1e-4)
    assert record['coco/bbox_mAP'] == shake.result()['metrics']['bbox_mAP']


def run_here(run, started=None):
    """Return run_tool in this process: only starting the tools is left out."""
    def run_tool(stage, session, tool, words, options, show=None):
        if started is not None:
            started.append((stage.method, tool))
        ended = run(tool, *words, '--cfg-options', *(f'{key}={value}' for key, value in options.items()))
        assert ended.code == 0, ended.err
    return run_tool


@pytest.mark.slow
def test_classifiers_are_compared_by_top_1(run, tmp_path, monkeypatch):
    monkeypatch.setattr(st, 'run_tool', run_here(run))
    monkeypatch.setattr(st.signal, 'signal', lambda *_: None)
    args = arguments(tmp_path, CLASSIFIER, '--smoke', '--methods', 'sokd', 'shake_teacher', '--seeds', '1')
    st.run(args, args.pairs, cm.plan, cm.report)
    part = json.loads((args.work_dir / 'comparison.json').read_text())['pairs']['classifier']
    assert part['metric'] == 'top1'
    assert list(part['methods']) == ['student', 'sokd', 'shake_teacher']
    for row in part['methods'].values():
        assert 0 <= row['mean'] <= 1 and row['gap']['kl']['mean'] > 0
    assert '| top-1 |' in (args.work_dir / 'comparison.md').read_text()


def test_several_trainings_at_a_time(tmp_path, monkeypatch):
    """Students wait for their teacher and then run side by side; one that fails stops the others."""
    together, order = threading.Barrier(2, timeout=20), []

    def run_tool(stage, session, tool, words, options, show=None):
        order.append(stage.method)
        if stage.method != 'teacher':
            together.wait()  # passes only where two run at a time
        if stage.seed == 1:
            raise st.StageError('broken')
        record = {'loss': 1.0, 'time': 0.1, 'step': 1}
        last = {'accuracy/top1': 50.0, 'gap/kl': 0.4, 'gap/agreement': 0.7, 'step': stage.epochs}
        path = stage.work_dir / 'run/vis_data/scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text(f'{json.dumps(record)}\n{json.dumps(last)}\n')

    monkeypatch.setattr(st, 'run_tool', run_tool)
    args = arguments(tmp_path, CLASSIFIER, '--methods', 'kd', '--seeds', '2', '--jobs', '2')
    stages = cm.plan(args)
    session = st.Session(None, args.jobs)
    with pytest.raises(st.StageError, match='broken'):
        st.run_stages(stages, session)
    assert order[0] == 'teacher' and sorted(order[1:3]) == ['kd', 'student']
    assert session.stop.is_set()
    assert [stage.finished for stage in stages] == [True, True, True, False, False]
