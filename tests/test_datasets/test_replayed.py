"""Random views of images: the same again, whoever asks; and mixtures of images."""
import random

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmkd.datasets import ReplayedDataset
from mmkd.datasets.replayed import mix_by_cutmix, mix_by_mixup
from mmkd.errors import MMKDError

NUMBER = 6
MIXES = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> str:
    """One gray image in each of six classes, brighter by 40 from class to class."""
    root = tmp_path_factory.mktemp('greys')
    for number in range(NUMBER):
        (root / f'class{number}').mkdir()
        cv2.imwrite(str(root / f'class{number}' / 'image.png'), np.full((16, 16, 3), 40 * number, np.uint8))
    return str(root)


def add_noise(results: dict) -> dict:
    """Change every channel by another generator."""
    noise = random.randrange(40), np.random.randint(40), int(torch.randint(40, ()))
    results['img'] = results['img'] + np.array(noise, np.uint8)
    return results


def config(images: str, noise: bool = True, **settings) -> dict:
    steps = [add_noise] if noise else []
    pipeline = [dict(type='mmpretrain.LoadImageFromFile'), *steps, dict(type='mmpretrain.PackInputs')]
    dataset = dict(type='mmpretrain.CustomDataset', data_root=images, pipeline=pipeline)
    return dict(dataset=dataset, **settings)


def pixels(item: dict) -> list:
    return item['inputs'][:, 0, 0].tolist()


def test_views_are_the_same_in_any_order_and_process(images):
    first = ReplayedDataset(**config(images, views=3))
    views_seen = [pixels(first[index]) for index in range(3 * NUMBER)]
    again = ReplayedDataset(**config(images, views=3))
    np.random.seed(1)
    for index in reversed(range(3 * NUMBER)):
        assert pixels(again[index]) == views_seen[index]
    loader = DataLoader(again, batch_size=4, sampler=range(3 * NUMBER), num_workers=2,
                        collate_fn=pseudo_collate)
    assert [image[:, 0, 0].tolist() for batch in loader for image in batch['inputs']] == views_seen


def test_views_images_and_seeds_differ_in_all_generators(images):
    dataset, other = (ReplayedDataset(**config(images, views=20, seed=seed)) for seed in (0, 1))
    noise = np.array([pixels(dataset[index]) for index in range(20 * NUMBER)]).reshape(20, NUMBER, 3)
    noise = noise - 40 * np.arange(NUMBER)[None, :, None]
    elsewhere = np.array([pixels(other[index]) for index in range(NUMBER)]) - 40 * np.arange(NUMBER)[:, None]
    for channel in range(3):
        assert noise[..., channel].min() < 8 and noise[..., channel].max() > 31
        assert all(len(set(views)) > 5 for views in noise[..., channel].T)
        assert len(set(noise[0, :, channel])) > 1
        assert noise[0, :, channel].tolist() != elsewhere[:, channel].tolist()


def test_generators_are_left_as_they_were(images):

    def draw():
        return random.random(), np.random.randn(), np.random.randn(), torch.rand(()).item()

    def seed():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        np.random.randn()  # NumPy keeps the second of two normal numbers

    dataset = ReplayedDataset(**config(images))
    seed()
    expected = draw()
    seed()
    dataset[0]
    assert draw() == expected


def test_what_samples_and_datasets_tell(images):
    dataset = ReplayedDataset(**config(images, views=2))
    sample = dataset[NUMBER + 2]['data_samples']
    assert (sample.sample_idx, sample.view, sample.gt_label.tolist()) == (2, 1, [2])
    assert len(dataset) == NUMBER and dataset.get_gt_labels().tolist() == list(range(NUMBER))
    assert dataset.metainfo['classes'][2] == 'class2' and dataset.get_cat_ids(2) == [2]
    for index in (-1, 2 * NUMBER):
        with pytest.raises(IndexError):
            dataset[index]


def test_two_epochs_see_one_view_again_and_two_views_take_turns(images):
    for views, same in ((1, [0, 0, 0]), (2, [0, 1, 0])):
        loader = Runner.build_dataloader(dict(
            batch_size=4, num_workers=0, sampler=dict(type='mmkd.ViewSampler', shuffle=True),
            dataset=dict(type='mmkd.ReplayedDataset', **config(images, views=views))), seed=0)
        epochs, views_seen = [], []
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)
            batches = [(batch['inputs'], batch['data_samples']) for batch in loader]
            samples = [sample for _, some in batches for sample in some]
            epochs.append({sample.sample_idx: image[:, 0, 0].tolist() for sample, image in zip(
                samples, [image for images, _ in batches for image in images], strict=True)})
            views_seen.append({sample.view for sample in samples})
        assert views_seen == [{view} for view in same]
        assert all(len(epoch) == NUMBER for epoch in epochs)
        assert epochs[0] == epochs[2] and (epochs[0] == epochs[1]) == (views == 1)


# Mixing


def test_mixup_by_hand():
    mixture, share = mix_by_mixup(torch.tensor([[[8.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]), 0.25,
                                  np.random.default_rng(0))
    assert share == 0.25 and mixture.tolist() == [[[2.0, 3.0]]]


@pytest.mark.parametrize('share', [0.0, 0.3, 0.75, 1.0])
def test_cutmix_pastes_a_box_and_counts_its_pixels(share):
    generator = np.random.default_rng(0)
    sides = set()
    for _ in range(50):
        mixture, counted = mix_by_cutmix(torch.zeros(3, 8, 20), torch.ones(3, 8, 20), share, generator)
        assert counted == pytest.approx(1 - mixture.mean().item(), abs=1e-6)
        rows, columns = mixture[0].any(dim=1).sum().item(), mixture[0].any(dim=0).sum().item()
        assert mixture.sum() == 3 * rows * columns  # one box, in all channels
        sides.add((rows, columns))
    whole = int(8 * (1 - share)**0.5), int(20 * (1 - share)**0.5)
    assert max(sides) <= whole and (share == 0.0 or whole in sides)
    assert share == 1.0 or len(sides) > 1  # some are cut off by the border


def test_labels_are_mixed_as_pixels_are(images):
    dataset = ReplayedDataset(**config(images, noise=False, views=8, mix=MIXES))
    kinds = set()
    for index in range(8 * NUMBER):
        item = dataset[index]
        score = item['data_samples'].gt_score
        assert item['inputs'].dtype == torch.float32 and score.sum().item() == pytest.approx(1)
        expected = (score * 40 * torch.arange(NUMBER)).sum()
        assert item['inputs'].mean().item() == pytest.approx(expected.item(), abs=1e-3)
        if 0.05 < score.max() < 0.95:
            kinds.add('CutMix' if item['inputs'].std() > 0 else 'Mixup')
        assert item['data_samples'].gt_label.item() == index % NUMBER
    assert kinds == {'Mixup', 'CutMix'}
    again = ReplayedDataset(**config(images, noise=False, views=8, mix=MIXES))
    assert torch.equal(again[7]['inputs'], dataset[7]['inputs'])


def test_a_partner_is_shown_in_the_same_view(images):
    plain, mixed = (ReplayedDataset(**config(images, views=4, mix=mix))
                    for mix in (None, [dict(type='Mixup', alpha=1.0)]))
    for index in range(4 * NUMBER):
        view = index // NUMBER
        share = mixed[index]['data_samples'].gt_score
        views = torch.stack([plain[view * NUMBER + one]['inputs'].float() for one in range(NUMBER)])
        torch.testing.assert_close(mixed[index]['inputs'], (share[:, None, None, None] * views).sum(dim=0))


@pytest.mark.parametrize(('settings', 'words'), [
    (dict(views=0), '`views` of ReplayedDataset must be an integer of at least 1, not 0'),
    (dict(mix=[dict(type='ResizeMix', alpha=1.0)]), 'ResizeMix'),
    (dict(mix=[dict(type='Mixup', alpha=0.0)]), 'above 0'),
    (dict(mix=[dict(type='CutMix', alpha=1.0, correct_lam=False)]), 'correct_lam')])
def test_settings_that_cannot_be_meant(images, settings, words):
    with pytest.raises(MMKDError, match=words):
        ReplayedDataset(**config(images, **settings))


def test_mixing_needs_classes_and_one_size(images, tmp_path):
    unlabelled = config(images, mix=MIXES)
    unlabelled['dataset'].update(with_label=False)
    with pytest.raises(MMKDError, match='classes'):
        ReplayedDataset(**unlabelled)
    for number, size in enumerate((8, 12)):
        (tmp_path / str(number)).mkdir()
        cv2.imwrite(str(tmp_path / str(number) / 'image.png'), np.zeros((size, size, 3), np.uint8))
    dataset = ReplayedDataset(**config(str(tmp_path), mix=MIXES, views=8))
    with pytest.raises(MMKDError, match='the same size'):
        [dataset[index] for index in range(16)]
