"""Images resident in memory: the same crops and flips as one by one, replayed exactly, and trained on."""
import json
import shutil
from collections import Counter
from glob import glob
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from mmkd.apis import prepare_config
from mmkd.apis.config import safe_source
from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError
from tests.helpers.classifiers import classifier, distill, teacher_of
from tests.helpers.tiny import forget_runs

CLASSES = ('blue', 'green', 'red')
EACH = 8
NUMBER = EACH * len(CLASSES)
SIZE, PADDING = 12, 2


@pytest.fixture(autouse=True)
def _scope(_fresh_process):
    init_default_scope('mmpretrain')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Images of noise, brighter in the channel that names their class."""
    root = tmp_path_factory.mktemp('noise')
    generator = np.random.default_rng(0)
    for channel, name in enumerate(CLASSES):
        (root / name).mkdir()
        for index in range(EACH):
            image = generator.integers(0, 160, (SIZE, SIZE, 3))
            image[..., channel] += 80
            cv2.imwrite(str(root / name / f'{index}.png'), image.astype(np.uint8))
    return root


def plain(folder: Path, *transforms: dict, **settings) -> dict:
    """Return the config of a dataset that reads the folder."""
    pipeline = [dict(type='LoadImageFromFile'), *transforms, dict(type='PackInputs')]
    return dict(type='CustomDataset', data_root=str(folder), pipeline=pipeline, **settings)


def resident(folder: Path, **settings) -> dict:
    """Return the config of a resident dataset with crops and flips."""
    settings = dict(dict(crop=SIZE, padding=PADDING, flip=0.5, device='cpu'), **settings)
    return dict(type='mmkd.ResidentDataset', **dict(dict(dataset=plain(folder)), **settings))


def whole(folder: Path, **settings) -> dict:
    return dict(type='mmkd.ResidentDataset', dataset=plain(folder), device='cpu', **settings)


def loader_of(dataset: dict, sampler: str = 'mmkd.ViewSampler', **settings) -> dict:
    return dict(dict(batch_size=7, num_workers=0, sampler=dict(type=sampler, shuffle=True), dataset=dataset,
                     collate_fn=dict(type='mmkd.as_batch')), **settings)


def padded(image: torch.Tensor, mode: str) -> torch.Tensor:
    return torch.nn.functional.pad(image.float(), (PADDING, ) * 4, mode).to(torch.uint8)


def placement(crop: torch.Tensor, original: torch.Tensor) -> tuple[int, int, bool]:
    """Return where in an image a crop was taken, and whether it was flipped.

    Args:
        crop: ``(3, SIZE, SIZE)``.
        original: The padded image, of noise: there is one answer.
    """
    possible = original.unfold(1, SIZE, 1).unfold(2, SIZE, 1).permute(1, 2, 0, 3, 4)
    ((flip, top, left), ) = torch.stack([
        (possible == one).flatten(2).all(-1) for one in (crop, crop.flip(-1))]).nonzero().tolist()
    return top, left, bool(flip)


def same(one: dict, other: dict) -> bool:
    return torch.equal(one['inputs'], other['inputs']) and all(
        sample.metainfo == same.metainfo and torch.equal(sample.gt_label, same.gt_label)
        for sample, same in zip(one['data_samples'], other['data_samples'], strict=True))


# Batches


def test_images_are_whole_without_a_crop(folder):
    source, dataset = DATASETS.build(plain(folder)), DATASETS.build(whole(folder))
    batch = dataset.__getitems__(range(NUMBER))
    for index, sample in enumerate(batch['data_samples']):
        expected = source[index]
        assert torch.equal(batch['inputs'][index], expected['inputs'])
        assert torch.equal(sample.gt_label, expected['data_samples'].gt_label)
        assert sample.metainfo == dict(sample_idx=index, img_shape=(SIZE, SIZE), view=0)


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
@pytest.mark.parametrize('views', [(3, ), (3, 0, 7)])
def test_a_batch_is_its_images_one_by_one(folder, mode, views):
    dataset = DATASETS.build(resident(folder, padding_mode=mode))
    indices = [view * NUMBER + image for image in (5, 0, 23, 5) for view in views]
    batch = dataset.__getitems__(indices)
    assert batch['inputs'].shape == (len(indices), 3, SIZE, SIZE) and batch['inputs'].dtype == torch.uint8
    for index, image, sample in zip(indices, batch['inputs'], batch['data_samples'], strict=True):
        alone = dataset[index]
        assert torch.equal(alone['inputs'], image)
        assert alone['data_samples'].metainfo == sample.metainfo == dict(
            sample_idx=index % NUMBER, img_shape=(SIZE, SIZE), view=index // NUMBER)
        assert int(sample.gt_label) == index % NUMBER // EACH


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
def test_crops_and_flips_are_uniform(folder, mode):
    """As those of MMPretrain are, which pads with zeros whatever its padding_mode."""
    source = DATASETS.build(plain(folder))
    originals = [padded(source[index]['inputs'], mode) for index in range(NUMBER)]
    dataset = DATASETS.build(resident(folder, padding_mode=mode))
    views = 50
    ours = [placement(image, original) for view in range(views) for image, original in zip(
        dataset.__getitems__(range(view * NUMBER, (view + 1) * NUMBER))['inputs'], originals, strict=True)]
    check_uniform(ours)
    if mode == 'constant':
        np.random.seed(0)
        stock = DATASETS.build(plain(folder, dict(type='RandomCrop', crop_size=SIZE, padding=PADDING),
                                      dict(type='RandomFlip', prob=0.5)))
        check_uniform([placement(stock[index]['inputs'], originals[index])
                       for _ in range(views) for index in range(NUMBER)])


def check_uniform(placements: list[tuple[int, int, bool]]) -> None:
    """Check that every combination of top, left and flip is about as frequent as the others."""
    counts = Counter(placements)
    expected = len(placements) / (2 * (2 * PADDING + 1)**2)
    assert len(counts) == 2 * (2 * PADDING + 1)**2
    chi_square = sum((count - expected)**2 / expected for count in counts.values())
    assert chi_square < 86  # 49 degrees of freedom: one in a thousand sets of random numbers has more


def test_probability_of_flips(folder):
    originals = DATASETS.build(whole(folder)).__getitems__(range(NUMBER))['inputs']
    for flip, share in ((0.0, 0.0), (0.1, 0.1), (1.0, 1.0)):
        dataset = DATASETS.build(whole(folder, flip=flip))
        images = dataset.__getitems__(range(20 * NUMBER))['inputs'].unflatten(0, (20, NUMBER))
        flipped = [torch.equal(image, original.flip(-1))
                   for view in images for image, original in zip(view, originals, strict=True)]
        assert sum(flipped) / len(flipped) == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)


def test_crops_may_be_smaller_than_images_that_are_no_squares(folder):
    source = plain(folder, dict(type='Resize', scale=(9, 15)))
    uncropped = DATASETS.build(whole(folder) | dict(dataset=source)).__getitems__(range(NUMBER))['inputs']
    assert uncropped.shape == (NUMBER, 3, 15, 9)
    dataset = DATASETS.build(resident(folder, dataset=source, crop=8, padding=0))
    for crop, image in zip(dataset.__getitems__(range(NUMBER, 2 * NUMBER))['inputs'], uncropped, strict=True):
        possible = [flipped[:, top:top + 8, left:left + 8] for flipped in (image, image.flip(-1))
                    for top in range(8) for left in range(2)]
        assert any(torch.equal(crop, one) for one in possible)


def test_scores_are_kept(folder, tmp_path):
    entries = [dict(img_path=f'blue/{index}.png', gt_label=0, gt_score=[0.75 - index / 8, 0.25 + index / 8])
               for index in range(2)]
    (tmp_path / 'scores.json').write_text(json.dumps(dict(metainfo={}, data_list=entries)))
    dataset = DATASETS.build(whole(folder) | dict(dataset=dict(
        plain(folder), type='mmpretrain.BaseDataset', ann_file=str(tmp_path / 'scores.json'),
        data_prefix=dict(img_path=''))))
    for entry, sample in zip(entries, dataset.__getitems__([0, 1])['data_samples'], strict=True):
        assert sample.gt_score.tolist() == entry['gt_score'] and sample.num_classes == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_batches_are_the_same_on_a_gpu_and_nobody_waits_for_it(folder):
    indices = list(range(3 * NUMBER, 4 * NUMBER))
    expected = DATASETS.build(resident(folder)).__getitems__(indices)['inputs']
    dataset = DATASETS.build(resident(folder, device='cuda'))
    dataset.__getitems__(indices)
    torch.cuda.set_sync_debug_mode('error')
    try:
        batch = dataset.__getitems__(indices)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert batch['inputs'].is_cuda and batch['data_samples'][0].gt_label.is_cuda
    assert torch.equal(batch['inputs'].cpu(), expected)


# Views


def test_views_can_be_replayed_and_differ(folder):
    one, other = (DATASETS.build(resident(folder)) for _ in range(2))
    views = [one.__getitems__(range(view * NUMBER, (view + 1) * NUMBER)) for view in range(3)]
    for view in (2, 0, 1):  # in another order
        again = other.__getitems__(range(view * NUMBER, (view + 1) * NUMBER))
        assert same(again, views[view])
    assert not torch.equal(views[0]['inputs'], views[1]['inputs'])
    assert not torch.equal(views[1]['inputs'], views[2]['inputs'])
    reseeded = DATASETS.build(resident(folder, seed=1)).__getitems__(range(NUMBER))
    assert not torch.equal(reseeded['inputs'], views[0]['inputs'])
    fewer = DATASETS.build(resident(folder, dataset=plain(folder, indices=5)))
    assert torch.equal(fewer.__getitems__(range(10, 15))['inputs'], views[2]['inputs'][:5])


def test_an_epoch_is_a_view(folder):
    loader = Runner.build_dataloader(loader_of(resident(folder, views=2)), seed=0)
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        samples = [(sample.sample_idx, sample.view, image) for batch in loader
                   for sample, image in zip(batch['data_samples'], batch['inputs'], strict=True)]
        assert sorted(index for index, _, _ in samples) == list(range(NUMBER))
        assert {view for _, view, _ in samples} == {epoch % 2}
        epochs.append(torch.stack([image for _, _, image in sorted(samples, key=lambda item: item[0])]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_two_processes_share_a_view(folder, monkeypatch):
    alone = DATASETS.build(resident(folder)).__getitems__(range(4 * NUMBER, 5 * NUMBER))['inputs']
    halves = []
    for rank in range(2):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        loader = Runner.build_dataloader(loader_of(resident(folder)), seed=0)
        loader.sampler.set_epoch(4)
        batches = list(loader)
        halves.append([sample.sample_idx for batch in batches for sample in batch['data_samples']])
        assert torch.equal(torch.cat([batch['inputs'] for batch in batches]), alone[halves[-1]])
    assert len(halves[0]) == len(halves[1]) == NUMBER // 2
    assert sorted(halves[0] + halves[1]) == list(range(NUMBER))


def test_workers_change_nothing(folder):
    batches = {}
    for workers in (0, 2):
        loader = Runner.build_dataloader(loader_of(resident(folder), num_workers=workers), seed=0)
        loader.sampler.set_epoch(1)
        batches[workers] = list(loader)
    assert all(same(one, other) for one, other in zip(batches[0], batches[2], strict=True))


# What others ask of a dataset, and what it asks of others


def test_questions_are_answered_as_the_source_does(folder):
    source, dataset = DATASETS.build(plain(folder)), DATASETS.build(resident(folder))
    dataset.full_init()
    assert len(dataset) == NUMBER
    assert dataset.metainfo == source.metainfo and dataset.CLASSES == source.CLASSES == CLASSES
    assert dataset.get_gt_labels().tolist() == source.get_gt_labels().tolist()
    assert dataset.get_data_info(9) == source.get_data_info(9) and dataset.get_cat_ids(9) == [1]


class Endless:
    """More images than any machine can hold."""

    def full_init(self) -> None:
        pass

    def __len__(self) -> int:
        return 10**15

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), data_samples=None)


NOT_PACKED = dict(pipeline=[dict(type='LoadImageFromFile')])
SCALED = dict(type='Normalize', mean=[0.0] * 3, std=[255.0] * 3)


@pytest.mark.parametrize(('settings', 'words'), [
    (dict(padding_mode='edge'), "must be 'constant' or 'reflect', not 'edge'"),
    (dict(crop=None), 'set crop'),
    (dict(crop=17), 'crop is 17, but the images are 12×12 with a padding of 2'),
    (dict(crop=0), '`crop` of ResidentDataset must be an integer of at least 1 or None, not 0'),
    (dict(views=0), '`views` of ResidentDataset must be an integer of at least 1 or None, not 0'),
    (lambda root: dict(dataset=plain(root, dict(type='RandomFlip', prob=0.5),
                                     dict(type='torchvision/RandomRotation', degrees=9),
                                     dict(type='ColorJitter', brightness=0.5))),
     'RandomFlip, RandomRotation, ColorJitter in the pipeline'),
    (lambda root: dict(dataset=dict(type='RepeatDataset', times=2, dataset=plain(
        root, dict(type='AutoAugment', policies='imagenet')))), 'AutoAugment'),
    (lambda root: dict(dataset=plain(root) | NOT_PACKED), 'must end with PackInputs'),
    (lambda root: dict(dataset=plain(root, SCALED)), 'uint8 images, but its dataset has torch.float32'),
    (dict(dataset=dict(type=Endless)), r'1000000000000000 images of 12×12 need \d+ MiB'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_settings_that_cannot_work(folder, settings, words):
    settings = settings(folder) if callable(settings) else settings
    with pytest.raises(MMKDError, match=words):
        DATASETS.build(resident(folder, **settings))


def test_images_of_several_sizes(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'mixed')
    cv2.imwrite(str(tmp_path / 'mixed/green/3.png'), np.zeros((9, 20, 3), np.uint8))
    with pytest.raises(MMKDError, match='image 0 is 12×12 and image 11 is 9×20; add Resize'):
        DATASETS.build(resident(tmp_path / 'mixed'))
    dataset = plain(tmp_path / 'mixed', dict(type='Resize', scale=(SIZE, SIZE)))
    assert DATASETS.build(resident(folder, dataset=dataset))[11]['inputs'].shape == (3, SIZE, SIZE)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_missing(folder):
    with pytest.raises(MMKDError, match="device is 'cuda', but there is no GPU"):
        DATASETS.build(resident(folder, device='cuda'))


def test_workers_do_not_share_a_gpu(folder):
    loader = Runner.build_dataloader(loader_of(resident(folder), num_workers=1), seed=0)
    loader.dataset.device = torch.device('cuda')
    with pytest.raises(MMKDError, match='set num_workers=0'):
        next(iter(loader))


@pytest.mark.slow
def test_batches_that_would_be_collated(folder):
    cfg = loader_of(resident(folder))
    del cfg['collate_fn']
    with pytest.raises(MMKDError, match=r"collate_fn=dict\(type='mmkd.as_batch'\)"):
        next(iter(Runner.build_dataloader(cfg, seed=0)))


# Training


def train(folder: Path, work_dir: Path, resume_from: Path | None = None) -> list[dict]:
    """Train a student for three epochs; return all logged losses."""
    model = distill(classifier(classes=3), teacher_of(classes=3), shake=dict(type='mmkd.SHAKE'),
                   crd=dict(type='mmkd.CRD', negatives=8))
    evaluation = loader_of(whole(folder), 'DefaultSampler')
    cfg = prepare_config(Config(dict(
        default_scope='mmpretrain', model=model, work_dir=str(work_dir),
        train_dataloader=loader_of(resident(folder)), val_dataloader=evaluation,
        val_evaluator=dict(type='Accuracy', topk=(1, )), val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        log_processor=dict(window_size=1), default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=0))))
    if resume_from:
        cfg.resume, cfg.load_from = True, safe_source(str(resume_from))
    forget_runs()
    Runner.from_cfg(cfg).train()
    (path, ) = glob(f'{work_dir}/*/vis_data/scalars.json')
    entries = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert any('accuracy/top1' in entry for entry in entries)
    return [{name: value for name, value in entry.items() if 'loss' in name}
            for entry in entries if 'loss' in entry]


def test_training_and_resuming(folder, tmp_path):
    undisturbed = train(folder, tmp_path / 'whole')
    assert len(undisturbed) == 3 * 4 and {'shake.loss_student', 'crd.loss_feature'} <= set(undisturbed[0])
    resumed = train(folder, tmp_path / 'part', tmp_path / 'whole/epoch_1.pth')
    assert resumed == undisturbed[4:]
    resumed_run, whole_run = (load_checkpoint(f'{tmp_path}/{run}/epoch_3.pth') for run in ('part', 'whole'))
    assert resumed_run['meta']['dataset_meta']['classes'] == CLASSES
    assert all(torch.equal(resumed_run['state_dict'][name], value)
               for name, value in whole_run['state_dict'].items())
