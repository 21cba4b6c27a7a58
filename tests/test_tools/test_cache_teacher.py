"""The tool that fills a teacher's cache, and trainings that use it."""
import json
from glob import glob

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmkd.apis import prepare_config, student_config
from mmkd.checkpoints import load_checkpoint
from mmkd.engine.hooks import TeacherCheckHook
from mmkd.errors import MMKDError
from mmkd.models.teachers import Teacher, TeacherCache
from tests.helpers.classifiers import classifier, teacher_of
from tests.helpers.tiny import build

TOOL, TRAIN = 'misc/cache_teacher.py', 'train.py'
CLASSES = ('blue', 'green', 'red')
IMAGES = 10


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with ten images, a teacher's config and weights, and a config that distills."""
    root = tmp_path_factory.mktemp('cache')
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        folder = root / 'images' / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{number}.png'), generator.integers(0, 256, (40, 40, 3), np.uint8))
    init_default_scope('mmpretrain')
    model = build(teacher_of(classes=3))
    with torch.no_grad():
        model.head.fc.weight.mul_(100)
    torch.save(dict(state_dict=model.state_dict()), root / 'teacher.pth')
    training(root, teacher_of(classes=3)).dump(root / 'teacher.py')
    cfg = training(root, classifier(classes=3))
    cfg.model = dict(
        type='mmkd.ClassifierDistiller', student=cfg.model,
        teacher=dict(config=str(root / 'teacher.py'), checkpoint=str(root / 'teacher.pth')),
        methods=dict(kd=dict(type='mmkd.KD')))
    cfg.dump(root / 'distilling.py')
    return root


def training(root, model) -> Config:
    """Return an ordinary MMPretrain config of three epochs."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5),
                dict(type='RandomCrop', crop_size=32), dict(type='PackInputs')]
    model = Config(model.to_dict())
    loader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                  dataset=dict(type='CustomDataset', data_root=str(root / 'images'), pipeline=pipeline))
    return Config(dict(
        default_scope='mmpretrain', data_preprocessor=model.pop('data_preprocessor'), model=model.to_dict(),
        train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)), randomness=dict(seed=0)))


def options(files, *more: str) -> list[str]:
    """Return options that teach a stock config."""
    return ['--distill', 'kd', '--teacher', str(files / 'teacher.py'), '--teacher-checkpoint',
            str(files / 'teacher.pth'), '--cfg-options', *more]


def losses(work_dir) -> list[dict]:
    (path, ) = glob(f'{work_dir}/*/vis_data/scalars.json')
    with open(path) as lines:
        entries = [entry for entry in map(json.loads, lines) if 'loss' in entry]
    return [{name: entry[name] for name in ('loss', 'kd.loss_student')} for entry in entries]


@pytest.fixture
def teacher_at_rest(monkeypatch):
    """Let no teacher run once training begins."""
    check = TeacherCheckHook.before_train

    def then_rest(hook, runner) -> None:
        check(hook, runner)
        for teacher in runner.model.mmkd.teachers:
            monkeypatch.setattr(teacher.model, 'extract_feat', lambda *_: pytest.fail('the teacher ran'))

    monkeypatch.setattr(TeacherCheckHook, 'before_train', then_rest)


@pytest.mark.slow
def test_trainings_with_and_without_a_cache_agree(run, files, tmp_path, request):
    out = tmp_path / 'logits'
    made = run(TOOL, files / 'distilling.py', '--views', 2, '--out', out, '--workers', 2, '--batch-size', 3)
    assert made.code == 0, made.err
    assert f'{IMAGES} images × 2 views × 3 of 3 logits: 0.0 MiB' in made.out and 'are free' in made.out
    assert f'--cfg-options model.teacher.cache={out}\n' in made.out
    top1 = float(made.out.split('accuracy on these images is ')[1].split(' %')[0])
    assert top1 == pytest.approx(TeacherCache(str(out)).top1(), abs=0.01) and 0 < top1 < 100

    cfg = Config.fromfile(files / 'distilling.py')
    cfg.train_dataloader.dataset = dict(type='mmkd.ReplayedDataset', views=2,
                                        dataset=cfg.train_dataloader.dataset)
    cfg.train_dataloader.sampler.type = 'mmkd.ViewSampler'
    cfg.dump(tmp_path / 'replayed.py')
    slowly = 'optim_wrapper.optimizer.lr=0.0001'  # so that rounding does not grow from step to step
    running = run(TRAIN, tmp_path / 'replayed.py', '--work-dir', tmp_path / 'running',
                  '--cfg-options', slowly)
    assert running.code == 0, running.err

    request.getfixturevalue('teacher_at_rest')
    cached = run(TRAIN, files / 'distilling.py', '--work-dir', tmp_path / 'cached',
                 '--cfg-options', slowly, f'model.teacher.cache={out}')
    assert cached.code == 0, cached.err
    expected, cached_losses = losses(tmp_path / 'running'), losses(tmp_path / 'cached')
    assert len(cached_losses) == len(expected) == 9 and expected[0]['kd.loss_student'] > 0.1
    for step, reference in zip(cached_losses, expected, strict=True):
        assert step == pytest.approx(reference, rel=5e-4)
    (log, ) = glob(f'{tmp_path}/cached/*/*.log')
    with open(log) as file:
        assert f'its top-1 accuracy on the cached images was {top1:.2f} %' in file.read()
    stock = load_checkpoint(f'{tmp_path}/cached/epoch_3.pth')['meta']['cfg']
    assert 'mmkd' not in stock and 'DefaultSampler' in stock


def test_one_option_and_a_mixed_stock_config(run, files, tmp_path, teacher_at_rest):
    cfg = training(files, classifier(classes=3, train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])))
    cfg.model.head.loss.use_soft = True
    cfg.teacher = dict(config=str(files / 'teacher.py'), checkpoint=str(files / 'teacher.pth'))
    cfg.dump(tmp_path / 'stock.py')
    made = run(TOOL, tmp_path / 'stock.py', '--out', tmp_path / 'logits', '--top-k', 2)
    assert made.code == 0, made.err
    assert len(TeacherCache(str(tmp_path / 'logits')).fingerprint['dataset']['config']['mix']) == 2
    trained = run(TRAIN, tmp_path / 'stock.py', '--work-dir', tmp_path / 'run', '--distill', 'kd',
                  '--cfg-options', f'model.teacher.cache={tmp_path}/logits')
    assert trained.code == 0, trained.err
    assert len(losses(tmp_path / 'run')) == 9
    stock = load_checkpoint(f'{tmp_path}/run/epoch_3.pth')['meta']['cfg']
    assert 'mmkd' not in stock and 'Mixup' in stock and 'CutMix' in stock
    no_label = run(TRAIN, tmp_path / 'stock.py', '--work-dir', tmp_path / 'dkd', '--distill', 'dkd',
                   '--cfg-options', f'model.teacher.cache={tmp_path}/logits')
    assert no_label.code == 2 and 'one class label' in no_label.err


def test_images_in_memory(run, files, tmp_path, teacher_at_rest):
    cfg = Config.fromfile(files / 'distilling.py')
    data = cfg.train_dataloader.dataset
    data.pipeline = [step for step in data.pipeline if not step.type.startswith('Random')]
    cfg.train_dataloader.collate_fn = dict(type='mmkd.as_batch')
    cfg.train_dataloader.dataset = dict(
        type='mmkd.ResidentDataset', dataset=data, crop=32, padding=4, flip=0.5, device='cpu')
    cfg.dump(tmp_path / 'resident.py')
    made = run(TOOL, tmp_path / 'resident.py', '--out', tmp_path / 'logits', '--views', 2)
    assert made.code == 0, made.err
    first, second = (TeacherCache(str(tmp_path / 'logits')).read([view] * IMAGES, range(IMAGES))
                     for view in (0, 1))
    assert not torch.equal(first, second)
    trained = run(TRAIN, tmp_path / 'resident.py', '--work-dir', tmp_path / 'run', '--cfg-options',
                  f'model.teacher.cache={tmp_path}/logits')
    assert trained.code == 0, trained.err
    assert len(losses(tmp_path / 'run')) == 9


@pytest.mark.slow
def test_an_interrupted_run_goes_on(run, files, tmp_path, monkeypatch):
    out = tmp_path / 'logits'
    forward = Teacher.forward
    batches = []

    def interrupted(*args, **kwargs):
        batches.append(0)
        if len(batches) == 5:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(Teacher, 'forward', interrupted)
    stopped = run(TOOL, files / 'distilling.py', '--views', 3, '--out', out)  # in the second batch of view 1
    assert stopped.code == 130 and stopped.err.endswith('Interrupted.\n')
    assert [TeacherCache(str(out)).has(view) for view in range(3)] == [True, False, False]
    first = (out / 'view_000.safetensors').stat().st_mtime_ns
    batches.extend([0] * 5)
    incomplete = run(TRAIN, files / 'distilling.py', '--work-dir', tmp_path / 'run', '--cfg-options',
                     f'model.teacher.cache={out}')
    assert incomplete.code == 2 and 'lacks view 1' in incomplete.err

    done = len(batches)
    ended = run(TOOL, files / 'distilling.py', '--views', 3, '--out', out)
    assert ended.code == 0 and '1 views are already in the cache' in ended.out
    assert len(batches) - done == 2 * 3
    assert (out / 'view_000.safetensors').stat().st_mtime_ns == first
    whole = run(TOOL, files / 'distilling.py', '--views', 3, '--out', tmp_path / 'whole')
    assert whole.code == 0
    assert TeacherCache(str(out)).files == TeacherCache(str(tmp_path / 'whole')).files


def test_what_is_refused(run, refused, files, tmp_path):
    out = tmp_path / 'logits'
    assert run(TOOL, files / 'distilling.py', '--out', out).code == 0
    flipped = 'train_dataloader.dataset.pipeline.1.prob=0.1'
    difference = 'pipeline.1.prob was 0.5 and is 0.1'
    refused(TOOL, [files / 'distilling.py', '--out', out, '--cfg-options', flipped], difference)
    training = [files / 'distilling.py', '--work-dir', tmp_path / 'run', '--cfg-options',
                f'model.teacher.cache={out}']
    refused(TRAIN, [*training, flipped], difference)
    refused(TRAIN, [*training, 'train_dataloader.num_batch_per_epoch=1'], 'num_batch_per_epoch')
    refused(TRAIN, [*training, 'train_dataloader.sampler.type=InfiniteSampler'], 'InfiniteSampler')
    refused(TRAIN, [*training[:-1], 'model.teacher.cache=nowhere'], "no teacher cache in 'nowhere'")
    refused(TOOL, [files / 'distilling.py', '--out', out, '--top-k', 2], 'holds 3 logits per image')
    refused(TOOL, [files / 'distilling.py', '--out', tmp_path / 'new', '--top-k', 4], '--top-k 4')
    refused(TOOL, [files / 'distilling.py', '--out', tmp_path / 'new', '--cfg-options',
                   'model.methods.kd.type=mmkd.FitNet'], "needs 'stage2' of the teacher")
    refused(TOOL, [files / 'distilling.py', '--out', tmp_path / 'new', '--cfg-options',
                   'model.teacher.checkpoint=random'], 'different weights in every run')
    refused(TOOL, [files / 'teacher.py', '--out', tmp_path / 'new'], 'neither distills')
    assert not (tmp_path / 'new').exists()


def test_a_disk_that_is_full(refused, files, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('Usage', (), dict(free=100)))
    refused(TOOL, [files / 'distilling.py', '--out', tmp_path / 'logits', '--views', 2], 'fewer --views')


def test_a_cache_in_place_of_a_file(refused, files, tmp_path):
    (tmp_path / 'logits').write_text('precious')
    refused(TOOL, [files / 'distilling.py', '--out', tmp_path / 'logits'], 'cannot be written')


# Preparing


@pytest.fixture
def cached(files, tmp_path):
    """Config whose teacher answers from a cache of four views."""
    TeacherCache.create(str(tmp_path), {}, 10, 3, 3, views=4)
    cfg = Config.fromfile(files / 'distilling.py')
    cfg.model.teacher.cache = str(tmp_path)
    return cfg


def test_data_become_replayable(cached, files):
    stock = Config.fromfile(files / 'distilling.py').train_dataloader
    loader = prepare_config(cached).train_dataloader
    assert loader.sampler == dict(type='mmkd.ViewSampler', shuffle=True)
    assert loader.dataset == dict(type='mmkd.ReplayedDataset', views=4, dataset=stock.dataset)
    once = cached.to_dict()
    assert prepare_config(cached).to_dict() == once
    assert student_config(cached).train_dataloader.dataset == stock.dataset


@pytest.mark.parametrize('place', ['student.train_cfg', 'student.data_preprocessor', 'data_preprocessor',
                                   'top'])
def test_mixing_moves_into_the_data(cached, place):
    augments = dict(augments=dict(type='CutMix', alpha=1.0))
    cached.merge_from_dict({
        'top': {'data_preprocessor.batch_augments': augments}, 'student.train_cfg': {
            'model.student.train_cfg': augments}}.get(place, {f'model.{place}.batch_augments': augments}))
    prepare_config(cached)
    assert cached.train_dataloader.dataset.mix == [dict(type='CutMix', alpha=1.0)]
    assert 'augments' not in str(cached.model) + str(cached.data_preprocessor)
    assert student_config(cached).model.train_cfg.augments == [dict(type='CutMix', alpha=1.0)]


def test_mixing_of_some_images_only_is_refused(cached):
    cached.model.student.train_cfg = dict(augments=[dict(type='CutMix', alpha=1.0)], probs=[0.5])
    with pytest.raises(MMKDError, match='probs'):
        prepare_config(cached)


def test_data_with_views_stay(cached):
    cached.train_dataloader.dataset = dict(type='mmkd.ResidentDataset', dataset=dict(type='CustomDataset'))
    assert prepare_config(cached).train_dataloader.dataset.views == 4
    cached.train_dataloader.dataset.views = 2
    assert prepare_config(cached).train_dataloader.dataset == dict(
        type='mmkd.ResidentDataset', views=2, dataset=dict(type='CustomDataset'))


def test_the_step_benchmark_reads_a_cache(run, files, tmp_path, request):
    assert run(TOOL, files / 'distilling.py', '--out', tmp_path / 'logits').code == 0
    measured = run('analysis_tools/benchmark_step.py', files / 'distilling.py', '--train-data', '--iters', 2,
                   '--device', 'cpu', '--json', tmp_path / 'found.json', '--cfg-options',
                   f'model.teacher.cache={tmp_path / "logits"}')
    assert measured.code == 0, measured.err
    cached = json.loads((tmp_path / 'found.json').read_text())
    assert cached['size'] == [32, 32] and cached['batch'] == 4
    assert cached['seconds']['teacher'] > cached['seconds']['mmkd_teacher'] > 0
    assert cached['profile']['distill']['teacher'] == 0
