"""Classifiers through the command line: training in one line, resuming, testing, deploying."""
import json
from glob import glob

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmpretrain')

from mmkd.checkpoints import load_checkpoint, student_state_dict
from mmkd.commands.export import export
from mmkd.errors import MMKDError
from tests.helpers.classifiers import classifier, teacher_of
from tests.helpers.tiny import forget_runs, run_command

pytestmark = pytest.mark.slow

CLASSES = ('blue', 'green', 'red')


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> str:
    """A folder of noisy images, brighter in the channel that names their class."""
    root = tmp_path_factory.mktemp('colors')
    generator = np.random.default_rng(0)
    for split, number in (('train', 8), ('val', 4)):
        for channel, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                image = generator.integers(0, 160, (40, 40, 3))
                image[..., channel] += 80
                cv2.imwrite(str(root / split / name / f'{index}.png'), image.astype(np.uint8))
    return str(root)


def config(images: str, model, epochs: int) -> Config:
    """Return an ordinary MMPretrain config, with its data preprocessor at the top."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
    model = Config(model.to_dict())
    preprocessor = model.pop('data_preprocessor')

    def loader(split, shuffle):
        return dict(
            batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=shuffle),
            dataset=dict(type='CustomDataset', data_root=images, data_prefix=split, pipeline=pipeline))

    evaluator = dict(type='Accuracy', topk=(1, ))
    return Config(dict(
        default_scope='mmpretrain', model=model.to_dict(), data_preprocessor=preprocessor,
        train_dataloader=loader('train', True), val_dataloader=loader('val', False),
        test_dataloader=loader('val', False), val_evaluator=evaluator, test_evaluator=evaluator,
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=epochs),
        val_cfg=dict(), test_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)), randomness=dict(seed=0)))


@pytest.fixture
def train(tmp_path, monkeypatch, images):
    """Run 'mmkd train' on a student of three classes and return its work directory."""
    def run(*options: str, name: str = 'run', epochs: int = 2):
        for role, model in (('student', classifier(classes=3)), ('teacher', teacher_of(classes=3))):
            config(images, model, epochs).dump(tmp_path / f'{role}.py')
        forget_runs()
        run_command('train', tmp_path / 'student.py', '--work-dir', tmp_path / name, *options)
        return tmp_path / name
    return run


def taught(tmp_path, method: str = 'shake', checkpoint: str = 'random') -> list[str]:
    return ['--distill', method, '--teacher', str(tmp_path / 'teacher.py'),
            '--teacher-checkpoint', checkpoint]


def logged(work_dir) -> list[dict]:
    entries = []
    for path in sorted(glob(f'{work_dir}/*/vis_data/scalars.json')):
        with open(path) as lines:
            entries += [entry for entry in map(json.loads, lines) if 'loss' in entry]
    return entries


def losses(entries: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if 'loss' in name} for entry in entries]


@pytest.mark.parametrize('method', ['shake', 'sokd', 'kdtuned', 'dml'])
def test_one_line_gives_a_checkpoint_that_mmpretrain_loads(train, tmp_path, images, method):
    from mmpretrain.apis import ImageClassificationInferencer
    run = train(*(taught(tmp_path, method) if method != 'dml' else ['--distill', 'dml']))
    assert len(logged(run)) == 12 and all(entry[f'{method}.loss_student'] > 0 for entry in logged(run))
    saved = load_checkpoint(f'{run}/epoch_2.pth')
    assert 'mmkd' not in saved['meta']['cfg']
    assert saved['meta']['dataset_meta']['classes'] == CLASSES
    stock = tmp_path / 'stock.py'
    stock.write_text(saved['meta']['cfg'])
    answers = ImageClassificationInferencer(str(stock), str(run / 'epoch_2.pth'), device='cpu')(
        glob(f'{images}/val/*/0.png'))
    assert {answer['pred_class'] for answer in answers} <= set(CLASSES)
    exported = export(
        str(run / 'epoch_2.pth'), str(tmp_path / 'student.pth'))
    assert set(exported['state_dict']) == set(student_state_dict(saved))


@pytest.mark.parametrize(('method', 'setting'), [
    ('sokd', None), ('ofd', None), ('mgd', 'mask_ratio=0.5'), ('crd', 'negatives=20'),
    ('sakd', 'method=AT'), ('sakd', 'settle_below=1.0'), ('ab', 'first_phase_epochs=2'),
    ('ft', 'first_phase_epochs=2'), ('ft', 'first_phase_epochs=1')])
def test_resuming_is_exact(train, tmp_path, method, setting):
    words = taught(tmp_path, method)
    if setting:
        words += ['--cfg-options', f'model.methods.{method}.{setting}']
    whole = train(*words, name='whole', epochs=3)
    part = train(*words, name='part', epochs=3)
    for path in glob(f'{part}/epoch_[23].pth'):
        (tmp_path / path).unlink()
    (part / 'last_checkpoint').write_text(str(part / 'epoch_1.pth'))
    first = len(logged(part))
    train(*words, '--resume', name='part', epochs=3)
    assert losses(logged(part)[first:]) == losses(logged(whole)[6:])
    mine, other = (load_checkpoint(f'{run}/epoch_3.pth')['state_dict'] for run in (part, whole))
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize(('method', 'trained'), [('ft', False), ('ab', True)])
def test_what_a_first_stage_trains(train, tmp_path, method, trained):
    run = train(*taught(tmp_path, method), '--cfg-options', f'model.methods.{method}.first_phase_epochs=2',
                epochs=3)
    one, two, three = (load_checkpoint(f'{run}/epoch_{epoch}.pth')['state_dict'] for epoch in (1, 2, 3))

    def differ(first, second, prefix):
        return any(not torch.equal(first[name], second[name]) for name in first
                   if name.startswith(prefix) and name.endswith(('weight', 'bias')))

    assert differ(one, two, 'backbone.') == trained
    trained_parts = dict(ft='losses', ab='connectors')[method]
    assert differ(one, two, f'mmkd.methods.{method}.{trained_parts}')
    assert differ(two, three, 'backbone.') and differ(two, three, 'head.')
    if method == 'ft':
        assert not differ(two, three, 'mmkd.methods.ft.losses.0.encoders')
        assert differ(two, three, 'mmkd.methods.ft.losses.0.translators')
    for entry in logged(run)[12:]:  # after the first stage
        assert (f'{method}.loss_feature' in entry) == (method == 'ft')


def test_a_first_stage_as_long_as_the_training_is_refused(train, tmp_path):
    with pytest.raises(MMKDError, match='first phase of ft takes 2 epochs, and the whole training has 2'):
        train(*taught(tmp_path, 'ft'), '--cfg-options', 'model.methods.ft.first_phase_epochs=2', epochs=2)
    assert not glob(f'{tmp_path}/run/*.pth')


def test_where_sakd_distilled_is_written_down_and_a_settled_policy_rests(train, tmp_path):
    options = ('model.methods.sakd.method=SP', 'model.methods.sakd.settle_below=1.0')
    run = train(*taught(tmp_path, 'sakd'), '--cfg-options', *options, epochs=3)
    reports = [json.loads(line) for line in (run / 'sakd_epochs.jsonl').read_text().splitlines()]
    assert [report['epoch'] for report in reports] == [1, 2, 3]
    for report in reports:
        assert report['spots'] == ['stage4', 'logits'] and report['seen'] == [8, 8, 8]
        chosen = [sum(column) / 24 for column in zip(*report['chosen'], strict=True)]
        assert report['shares'] == pytest.approx(chosen)
    for entry in logged(run):
        assert 0 <= entry['sakd.share_stage4'] <= 1
        assert ('sakd.loss_routing' in entry) == (entry['epoch'] < 3)
    assert 'mmkd' not in load_checkpoint(f'{run}/epoch_3.pth')['meta']['cfg']


def test_crd_says_what_it_needs(train, tmp_path, images):
    with pytest.raises(MMKDError, match='sample_idx'):
        train(*taught(tmp_path, 'crd'), '--cfg-options', 'model.methods.crd.negatives=4',
              "train_dataloader.dataset.pipeline.2.meta_keys=['img_shape']")


def test_the_teacher_is_evaluated_first_and_classes_are_compared(train, tmp_path):
    checkpoint = str(train(name='alone') / 'epoch_2.pth')  # which teaches now
    content = load_checkpoint(checkpoint)
    run = train('--distill', 'kd', '--teacher', str(tmp_path / 'student.py'), '--teacher-checkpoint',
                checkpoint)
    (log, ) = glob(f'{run}/*/*.log')
    with open(log) as file:
        assert 'Teacher: accuracy/top1' in file.read()
    content['meta']['dataset_meta']['classes'] = ('green', 'blue', 'red')
    torch.save(content, tmp_path / 'permuted.pth')
    with pytest.raises(MMKDError, match='class_mapping'):
        train('--distill', 'kd', '--teacher', str(tmp_path / 'student.py'), '--teacher-checkpoint',
              str(tmp_path / 'permuted.pth'), name='again')


def test_the_gap_is_measured_in_testing(train, tmp_path, monkeypatch):
    run = train(*taught(tmp_path, 'kd'))
    forget_runs()
    run_command('test', tmp_path / 'student.py', run / 'epoch_2.pth', '--work-dir', tmp_path / 'tested',
                '--teacher', tmp_path / 'teacher.py', '--teacher-checkpoint', 'random',
                '--out', tmp_path / 'predictions.pkl')
    (path, ) = glob(f'{tmp_path}/tested/*/*.json')
    with open(path) as file:
        metrics = json.load(file)
    assert metrics['gap/kl'] >= 0 and 0 <= metrics['gap/agreement'] <= 1 and 'accuracy/top1' in metrics
    assert (tmp_path / 'predictions.pkl').exists()


def test_images_that_are_missing(train, tmp_path, images):
    for split in ('train', 'val'):
        with pytest.raises(MMKDError, match=f"image folder 'nowhere' of {split}_dataloader does not exist"):
            train('--cfg-options', f'{split}_dataloader.dataset.data_root=nowhere', name='missing')
    assert not (tmp_path / 'missing').exists()


def test_dry_run(train, tmp_path, monkeypatch, capsys):
    run = train(*taught(tmp_path, 'sokd'))
    run_command('dry-run', run / 'student.py', '--size', 64, '--device', 'cpu')
    printed = capsys.readouterr().out
    assert 'sokd.loss_proxy_task' in printed and 'DistilledImageClassifier' in printed
