"""What a comparison plans and checks."""
import dataclasses
import functools
from pathlib import Path

import pytest

from mmkd.errors import MMKDError
from mmkd.experiments import comparison as module
from mmkd.experiments.comparison import Comparison, compare, work_dir_of
from mmkd.experiments.method_names import TITLES, method_title, ordered
from mmkd.experiments.runs import write_json
from mmkd.experiments.training_config import load_config, make_digits, read_training_config
from tests.helpers.tiny import REPO

FASTER_RCNN = 'configs/examples/digits/faster_rcnn_student.py'
RETINANET = 'configs/examples/digits/retinanet_student.py'
CLASSIFIER = 'configs/examples/quickstart/classifier_student.py'
SHIPPED = 'mmkd::examples/quickstart/classifier_student.py'


def comparison(tmp_path, *pairs, methods=tuple(TITLES), seeds=3, **settings) -> Comparison:
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    return Comparison(pairs=pairs, methods=ordered(methods), seeds=seeds, work_dir=tmp_path / 'out',
                      data=tmp_path / 'digits', command='…', **settings)


def test_plan_of_everything(tmp_path):
    runs = comparison(tmp_path, FASTER_RCNN, RETINANET).plan()
    assert len(runs) == 2 * (1 + 3 * 8)
    assert len({run.work_dir for run in runs}) == len(runs)
    # All teachers, then seed by seed, so that a part of the runs makes a balanced table.
    assert [run.method for run in runs[:3]] == ['teacher', 'teacher', 'student']
    assert [run.seed for run in runs[2:]] == [0] * 16 + [1] * 16 + [2] * 16
    for pair in ('faster_rcnn', 'retinanet'):
        teacher, *students = (run for run in runs if run.settings['pair'] == pair)
        assert teacher.method == 'teacher' and teacher.metric == 'coco/bbox_mAP'
        assert not teacher.train_arguments
        assert [run.seed for run in students] == [0] * 8 + [1] * 8 + [2] * 8
        # The same budget for all: config, length and options; only --distill and its settings differ.
        for run in students:
            assert (run.config, run.epochs, run.iterations) == (
                students[0].config, students[0].epochs, students[0].iterations)
            assert run.options == {**students[0].options, 'randomness.seed': run.seed}
            assert run.metric == 'gap/kl'
            assert run.test_arguments == (
                '--teacher', teacher.config, '--teacher-checkpoint', teacher.checkpoint)
        alone, kd = students[:2]
        assert alone.method == 'student' and not alone.train_arguments and not alone.train_options
        assert kd.train_arguments == ('--distill', 'kd', *kd.test_arguments)
        assert kd.train_options['model.methods.kd.temperature'] == 1.0
        placements = [run.train_options['model.methods.shake.placement'] for run in students[5:8]]
        assert placements == ['student', 'teacher', 'alone']
        assert {run.train_arguments[1] for run in students[5:8]} == {'shake'}


def test_plan_of_a_part(tmp_path):
    runs = comparison(tmp_path, RETINANET, methods=['sokd'], seeds=(100, ), smoke=True).plan()
    assert [(run.method, run.seed) for run in runs] == [('teacher', 0), ('student', 100), ('sokd', 100)]
    assert {run.iterations for run in runs} == {3}
    assert {run.options['train_cfg.val_interval'] for run in runs} == {1}


def test_curves_need_all_validations(tmp_path):
    plain = comparison(tmp_path, FASTER_RCNN, seeds=1)
    pictures = dataclasses.replace(plain, pictures=True, pair_folders=False)
    assert {run.options['train_cfg.val_interval'] for run in plain.plan()} == {1000}
    assert not any('train_cfg.val_interval' in run.options for run in pictures.plan())
    # Pictures change nothing that a result depends on.
    assert [run.settings for run in plain.plan()] == [run.settings for run in pictures.plan()]
    assert [run.work_dir.parent for run in plain.plan()] == [tmp_path / 'out/faster_rcnn'] * 9
    assert [run.work_dir.parent for run in pictures.plan()] == [tmp_path / 'out'] * 9


def test_other_settings_are_not_mixed(tmp_path, monkeypatch):
    compared = comparison(tmp_path, FASTER_RCNN, seeds=1)
    for run in compared.plan():
        write_json(run.work_dir / 'settings.json', run.settings)
        run.check_settings()
    read = read_training_config
    monkeypatch.setattr(module, 'read_training_config', lambda *arguments: dataclasses.replace(
        read(*arguments), settings=dict(proxies=dict(temperature=1.0, weight=2.0))))
    for run in comparison(tmp_path, FASTER_RCNN, seeds=1).plan():
        if run.method in ('teacher', 'student'):
            run.check_settings()
        else:
            with pytest.raises(MMKDError, match='other settings .method_settings.'):
                run.check_settings()


def test_called_from_another_folder(tmp_path, monkeypatch):
    """Pairs are named by paths, or by their names inside the package."""
    (tmp_path / 'small_student.py').write_text(f"_base_ = {str(REPO / CLASSIFIER)!r}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.signal, 'signal', lambda *_: None)
    planned = []
    monkeypatch.setattr(module.RunQueue, 'run', lambda queue, report: planned.extend(queue.runs))
    monkeypatch.setattr(Comparison, 'print_report', lambda *_: None)
    compare(comparison(tmp_path, 'small_student.py', SHIPPED, methods=['kd'], seeds=1, smoke=True))
    assert [run.settings['pair'] for run in planned] == [
        'small', 'classifier', 'small', 'small', 'classifier', 'classifier']
    assert {run.config for run in planned if run.method != 'teacher'} == {
        'small_student.py', SHIPPED}
    assert {run.config for run in planned if run.method == 'teacher'} == {
        'mmkd::examples/quickstart/classifier_teacher.py'}


def test_an_output_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'out').write_text('precious')
    monkeypatch.setattr(module.signal, 'signal', lambda *_: None)
    with pytest.raises(MMKDError, match='cannot be written'):
        compare(comparison(tmp_path, CLASSIFIER))


def test_two_comparisons_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module.signal, 'signal', lambda *_: None)
    (tmp_path / 'out').mkdir()
    with module.FileLock(tmp_path / 'out/.lock'), pytest.raises(MMKDError, match='Another comparison is'):
        compare(comparison(tmp_path, CLASSIFIER))


@pytest.mark.parametrize(('content', 'said'), [
    ("_base_ = '{root}/configs/_base_/schedules/crd_240e.py'", 'not a training config'),
    ("_base_ = '{root}/{pair}'\nteacher = dict(config='none.py')", 'the teacher none.py'),
    ("_base_ = '{root}/configs/cifar/resnet32x4_resnet8x4_cifar10.py'\n"
     "train_dataloader = dict(dataset=dict(data_root='none'))", 'does not exist'),
    ('model = dict(', 'cannot be read')])
def test_pairs_that_cannot_be_trained(tmp_path, content, said):
    (tmp_path / 'pair.py').write_text(content.replace('{root}', str(REPO)).replace('{pair}', CLASSIFIER))
    with pytest.raises(MMKDError, match=said):
        comparison(tmp_path, str(tmp_path / 'pair.py'), smoke=True).plan()


def test_default_folders():
    assert work_dir_of(None, 'compare_methods', smoke=False) == REPO / 'work_dirs/compare_methods'
    assert work_dir_of(None, 'compare_methods', smoke=True) == REPO / 'work_dirs/compare_methods_smoke'
    config = CLASSIFIER
    assert read_training_config(config).folder == REPO / 'data/digits_cls'
    assert read_training_config(config, data=Path('digits')).folder == Path('digits')
    assert read_training_config(config, smoke=True).folder == REPO / 'data/digits_cls_smoke'


def test_one_folder_for_two_datasets(tmp_path):
    configs = [read_training_config(pair, data=tmp_path) for pair in (CLASSIFIER, FASTER_RCNN)]
    with pytest.raises(MMKDError, match='several datasets'):
        make_digits(configs)


def test_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / 'diary.txt').write_text('precious')
    with pytest.raises(MMKDError, match=str(tmp_path)):
        make_digits([read_training_config(CLASSIFIER, data=tmp_path)])
    assert (tmp_path / 'diary.txt').read_text() == 'precious'


def test_options_go_to_teacher_and_students(tmp_path):
    runs = comparison(tmp_path, CLASSIFIER, methods=['kd'], seeds=1,
                      cfg_options=('train_cfg.max_epochs=7', )).plan()
    assert [run.method for run in runs] == ['teacher', 'student', 'kd']
    for run in runs:
        assert run.options['train_cfg.max_epochs'] == '7'
        assert (run.epochs, run.iterations) == (7, 7 * (3000 // 64))
        assert run.checkpoint.name == 'epoch_7.pth'
    assert runs[0].metric == 'accuracy/top1' and runs[2].teacher is runs[0]


def test_any_method_and_several_together(tmp_path):
    runs = comparison(tmp_path, CLASSIFIER, methods=['fitnet+shake_teacher', 'ab'], seeds=1).plan()
    assert [run.method for run in runs] == ['teacher', 'student', 'fitnet+shake_teacher', 'ab']
    both, ab = runs[2:]
    assert both.title.startswith('classifier, FitNet + SHAKE (teacher)')
    assert both.train_arguments[:3] == ('--distill', 'fitnet', 'shake')
    assert both.train_options['model.methods.shake.placement'] == 'teacher'
    assert ab.train_options['model.methods.ab.first_phase_epochs'] == 2
    sakd, = comparison(tmp_path, CLASSIFIER, methods=['sakd:method=AT:strategy=random'], seeds=1).plan()[2:]
    assert sakd.title == 'classifier, SAKD (AT, random), seed 0'
    assert method_title('shake_teacher:warmup=0.5') == 'SHAKE (teacher, warmup 0.5)'
    assert method_title('mgd:weight=2e-5') == 'MGD (weight 2e-5)'
    assert sakd.train_arguments[:2] == ('--distill', 'sakd')
    assert sakd.train_options['model.methods.sakd.strategy'] == 'random'
    assert sakd.work_dir.name == 'sakd-method-AT-strategy-random_seed0'
    with pytest.raises(MMKDError, match='not NAME:SETTING=VALUE'):
        comparison(tmp_path, CLASSIFIER, methods=['sakd:AT']).plan()
    with pytest.raises(MMKDError, match="no method 'fitnets'; the nearest names are 'fitnet'"):
        comparison(tmp_path, CLASSIFIER, methods=['kd', 'fitnets']).plan()


def test_a_method_that_does_not_fit_is_told_before_anything_is_trained(tmp_path):
    compared = comparison(tmp_path, RETINANET, methods=['kd', 'pkd', 'dkd'], smoke=True)
    with pytest.raises(MMKDError, match=r'RetinaNet, DKD, seed 0: DKD compares .* \(softmax\)'):
        compared.check_students(compared.plan())
    part = comparison(tmp_path, RETINANET, methods=['kd', 'pkd'], smoke=True)
    part.check_students(part.plan())
    # What is finished needs no check.
    for run in compared.plan():
        if run.method == 'dkd':
            write_json(run.result_path, {})
    compared.check_students(compared.plan())


def test_a_first_phase_that_leaves_no_epoch_is_told(tmp_path):
    long = comparison(tmp_path, RETINANET, methods=['ft'], seeds=1)
    with pytest.raises(MMKDError, match='FT, seed 0: The first phase of ft takes 30 epochs,'):
        long.check_students(long.plan())
    short = comparison(tmp_path, RETINANET, methods=['ft:first_phase_epochs=1'], seeds=1)
    short.check_students(short.plan())
    *_, ft, sakd = comparison(
        tmp_path, CLASSIFIER, methods=['ft', 'sakd:method=FT'], seeds=1, smoke=True).plan()
    assert ft.train_options['model.methods.ft.first_phase_epochs'] == 0
    assert sakd.train_options['model.methods.sakd.first_phase_epochs'] == 0


def test_settings_in_names_reach_the_check(tmp_path):
    compared = comparison(tmp_path, CLASSIFIER, methods=['sakd:method=nothing'], seeds=1)
    with pytest.raises(MMKDError, match="SAKD needs an inner method that distills .* not 'nothing'"):
        compared.check_students(compared.plan())


def test_a_config_without_a_teacher_is_told(tmp_path):
    with pytest.raises(MMKDError, match='names no teacher'):
        comparison(tmp_path, 'configs/examples/quickstart/classifier_teacher.py').plan()


def test_students_with_few_images(tmp_path):
    """A student's first 250 images of 6000, or a folder of 500 images of every class."""
    read = functools.partial(read_training_config, data=tmp_path)
    for name in ('faster_rcnn', 'retinanet'):
        teacher = read(f'configs/examples/digits_few/{name}_teacher.py')
        student = read(f'configs/examples/digits_few/{name}_student.py')
        assert teacher.iterations == teacher.epochs * 750
        batch_size = load_config(student.path).train_dataloader.batch_size
        assert student.iterations == student.epochs * -(-250 // batch_size)
        assert teacher.images == student.images == dict(train=6000, val=600, seed=0, image_size=96)
    # Images that are held in memory are not read to count them.
    path = 'configs/examples/cifar10_few/resnet8_5000_student.py'
    roots = ('train_dataloader.dataset.dataset', 'val_dataloader.dataset')
    smoke = read_training_config(path, tuple(f'{root}.data_root={tmp_path}' for root in roots), smoke=True)
    assert smoke.iterations == 2
    assert smoke.options['train_dataloader.dataset.dataset.indices'] == 128
    assert smoke.options['val_dataloader.dataset.indices'] == 128


def test_a_report_without_training(tmp_path, monkeypatch, capsys):
    """It reports what is finished, also beside a running comparison, and trains nothing."""
    compared = comparison(tmp_path, CLASSIFIER, methods=['kd'], seeds=2, report_only=True)
    teacher, student, kd, *_ = compared.plan()
    result = dict(metrics=dict(top1=0.9), seconds_per_iteration=0.1)
    write_json(teacher.result_path, result)
    for run, top1 in ((student, 0.6), (kd, 0.7)):
        write_json(run.result_path, dict(
            result, metrics=dict(top1=top1), gap=dict(kl=0.5, agreement=0.8)))
    monkeypatch.setattr(module.RunQueue, 'run', lambda *_: pytest.fail('trains'))
    with module.FileLock(compared.work_dir / '.lock'):
        compare(compared)
    printed = capsys.readouterr().out
    assert '3 of 5 trainings are finished' in printed
    assert '- **Unfinished**: of 2 seeds, fewer are finished with student alone (1), KD (1).' in printed
    assert '+10.0' in (compared.work_dir / 'comparison.md').read_text()
    write_json(kd.work_dir / 'settings.json', dict(kd.settings, epochs=1))
    with pytest.raises(MMKDError, match='other settings .epochs.'):
        compare(compared)
