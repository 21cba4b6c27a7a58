"""CIFAR-10 as folders of images: unpacking, and training on what was unpacked."""
import io
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmkd.checkpoints import load_checkpoint, student_state_dict
from tests.helpers.tiny import REPO, load_tool

TOOL = 'dataset_converters/cifar10_folder.py'
CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
IMAGES = dict(train=3, test=2)


@pytest.fixture
def source(tmp_path) -> Path:
    """A tiny set of noise in the layout of the archive."""
    generator = np.random.default_rng(0)
    for split, number in IMAGES.items():
        for name in CLASSES:
            folder = tmp_path / 'src/cifar10' / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                image = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
                assert cv2.imwrite(str(folder / f'{index:04}.jpg'), image)
    return tmp_path / 'src/cifar10'


def pack(folder: Path, out: Path, *others: tarfile.TarInfo) -> Path:
    with tarfile.open(out, f'w:{out.suffix[1:]}') as archive:
        archive.add(folder, folder.name)
        for member in others:
            archive.addfile(member, io.BytesIO(b'x' * member.size))
    return out


@pytest.fixture
def archive(source, tmp_path) -> Path:
    readme = tarfile.TarInfo('cifar10/README')
    readme.size = 3
    return pack(source, tmp_path / 'cifar10.tar.xz', readme)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize('form', ['archive', 'folder', 'folder above'])
def test_unpacking(form, archive, source, tmp_path, run):
    src = {'archive': archive, 'folder': source, 'folder above': source.parent}[form]
    out = tmp_path / 'data/cifar10'
    ended = run(TOOL, src, out)
    assert ended.code == 0, ended
    assert '10 classes with 3 images each (the full set has 5000)' in ended.out
    assert '10 classes with 2 images each (the full set has 1000)' in ended.out
    assert ended.out.strip().endswith('made')
    assert contents(out) == contents(source)
    assert [path.name for path in out.parent.iterdir()] == ['cifar10']
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    again = run(TOOL, src, out)
    assert again.code == 0 and again.out.strip().endswith('already exists')
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


def test_the_first_images_of_every_class(archive, source, tmp_path, run):
    ended = run(TOOL, archive, tmp_path / 'out', '--per-class', 2)
    assert ended.code == 0 and '10 classes with 2 images each (the full set has 5000)' in ended.out
    assert contents(tmp_path / 'out') == {
        name: content for name, content in contents(source).items() if not name.endswith('0002.jpg')}


def test_another_set_is_refused_and_nothing_is_lost(archive, tmp_path, refused, run):
    assert run(TOOL, archive, tmp_path / 'out', '--per-class', 2).code == 0
    refused(TOOL, [archive, tmp_path / 'out'], 'does not hold the files of this set', tmp_path / 'out')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.txt').write_text('mine')
    refused(TOOL, [archive, tmp_path / 'mine'], 'does not hold the files of this set')


def test_too_few_images_of_a_class(archive, tmp_path, refused):
    refused(TOOL, [archive, tmp_path / 'out', '--per-class', 4], 'more than the 3 training images')
    refused(TOOL, [archive, tmp_path / 'out', '--per-class', 0], 'at least one image')


@pytest.mark.parametrize(('spoil', 'words'), [
    (lambda root: shutil.rmtree(root / 'test/cat'), ("'cat' is only in train", )),
    (lambda root: [shutil.rmtree(root / split / 'cat') for split in IMAGES], ('9 classes', )),
    (lambda root: (root / 'train/cat/0000.jpg').unlink(), ('different numbers of train', 'cat 2')),
    (lambda root: shutil.copytree(root, root.parent / 'cifar10/again'), ('2 such folders', )),
    (lambda root: [shutil.rmtree(root / split) for split in IMAGES], ('0 such folders', )),
])
def test_another_layout(spoil, words, source, tmp_path, refused):
    spoil(source)
    refused(TOOL, [pack(source, tmp_path / 'other.tar.gz'), tmp_path / 'out'], *words)
    assert not (tmp_path / 'out').exists()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


@pytest.mark.parametrize('member', [
    tarfile.TarInfo('../train/cat/evil.jpg'), link('cifar10/train/cat/evil.jpg', '/etc/passwd'),
    link('cifar10/out', '../..')], ids=['outside', 'link', 'folder link'])
def test_unsafe_archives(member, source, tmp_path, refused):
    unsafe = pack(source, tmp_path / 'unsafe.tar.gz', member)
    refused(TOOL, [unsafe, tmp_path / 'a/b/out'], 'not safe to unpack')
    assert not (tmp_path / 'a').exists()


def test_absolute_names_stay_inside(source, tmp_path, run):
    """As ``tar`` does, the leading slash is left out."""
    path = tmp_path / 'absolute.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        for file in source.rglob('*.jpg'):
            member = tarfile.TarInfo(f'/nowhere/cifar10/{file.relative_to(source)}')
            member.size = file.stat().st_size
            archive.addfile(member, io.BytesIO(file.read_bytes()))
    assert run(TOOL, path, tmp_path / 'out').code == 0
    assert contents(tmp_path / 'out') == contents(source)
    assert not os.path.exists('/nowhere')


@pytest.mark.parametrize('suffix', ['xz', 'gz'])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.9])
def test_truncated_archives(suffix, share, source, tmp_path, refused):
    path = pack(source, tmp_path / f'cut.tar.{suffix}')
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    refused(TOOL, [path, tmp_path / 'out'], path)
    assert {item.name for item in tmp_path.iterdir()} == {'src', path.name}


def test_no_such_archive(tmp_path, refused):
    refused(TOOL, [tmp_path / 'none.tar.xz', tmp_path / 'out'], 'does not exist')
    (tmp_path / 'text.tar.xz').write_text('no archive')
    refused(TOOL, [tmp_path / 'text.tar.xz', tmp_path / 'out'], 'cannot be unpacked')


def test_nothing_remains_of_an_interrupted_run(archive, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, 'extractall', interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_tool(TOOL).convert(str(archive), str(tmp_path / 'new/out'))
    assert list((tmp_path / 'new').iterdir()) == []


# Training on it

PAIR = REPO / 'configs/cifar/wrn_40_2_wrn_16_2_cifar10.py'


def test_what_mmpretrain_reads(source):
    cfg = Config.fromfile(PAIR)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for split, number in IMAGES.items():
            config = cfg[f'{split}_dataloader'].dataset
            config.data_root = str(source)
            dataset = DATASETS.build(config)
            assert dataset.metainfo['classes'] == CLASSES
            assert [dataset[index]['data_samples'].gt_label.item() for index in range(len(dataset))] == [
                label for label in range(10) for _ in range(number)]
            assert {tuple(item['inputs'].shape) for item in dataset} == {(3, 32, 32)}
        # The last dataset is of test images: nothing is random, and the preprocessor makes them RGB.
        file = cv2.imread(str(source / 'test/airplane/0000.jpg'))
        preprocessor = MODELS.build(dict(cfg.data_preprocessor, type='ClsDataPreprocessor'))
        pixels = preprocessor(dict(inputs=[dataset[0]['inputs']]))['inputs'][0].numpy()
    expected = (file[:, :, ::-1].astype(np.float32) - cfg.data_preprocessor.mean) / cfg.data_preprocessor.std
    np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_command_from_a_pair_to_a_checkpoint(source, tmp_path, run):
    options = [f'{split}_dataloader.dataset.data_root={source}' for split in ('train', 'val', 'test')]
    options += [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
    options += ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=10', 'model.methods.kd.weight=0.9',
                'model.methods.kd.student_task=0.1', 'default_hooks.logger.interval=1']
    ended = run('train.py', PAIR, '--distill', 'kd', '--teacher-checkpoint', 'random', '--work-dir',
                tmp_path / 'run', '--cfg-options', *options)
    assert ended.code == 0, ended
    saved = load_checkpoint(str(tmp_path / 'run/epoch_1.pth'))
    assert saved['meta']['dataset_meta']['classes'] == CLASSES
    config = Config.fromstring(saved['meta']['cfg'], '.py')
    assert config.model.type == 'ImageClassifier' and 'teacher' not in config
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        student = MODELS.build(config.model)
    student.load_state_dict(student_state_dict(saved))
    composed = Config.fromfile(tmp_path / 'run' / PAIR.name)
    assert composed.model.teacher.config == 'mmkd::cifar/networks/wrn_40_2_cifar10.py'
    assert composed.model.methods.kd == dict(type='mmkd.KD', weight=0.9, student_task=0.1)
