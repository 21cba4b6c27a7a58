import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmkd.datasets import digits, digits_detection


@pytest.fixture(scope='module')
def digits_set(tmp_path_factory):
    out = tmp_path_factory.mktemp('digits') / 'set'
    assert digits_detection.make(out, train=12, val=6, seed=3)
    return out


def annotations(root, split):
    return json.loads((root / f'annotations/instances_{split}.json').read_text())


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize(('split', 'number'), [('train', 12), ('val', 6)])
def test_layout_is_coco(digits_set, split, number):
    content = annotations(digits_set, split)
    assert [category['name'] for category in content['categories']] == list('0123456789')
    assert len(content['images']) == number
    assert sorted(path.name for path in (digits_set / split).iterdir()) == [
        image['file_name'] for image in content['images']]
    for image in content['images']:
        pixels = cv2.imread(str(digits_set / split / image['file_name']))
        assert pixels.shape == (160, 160, 3)
        objects = [a for a in content['annotations'] if a['image_id'] == image['id']]
        assert 2 <= len(objects) <= 6
        for x, y, width, height in (a['bbox'] for a in objects):
            assert 0 <= x < x + width <= 160
            assert 0 <= y < y + height <= 160


def test_smaller_images_have_smaller_digits(digits_set, tmp_path):
    """In 96 pixels, everything has 0.6 of its size; the settings of sets of 160 pixels have not changed."""
    assert json.loads((digits_set / 'settings.json').read_text()) == dict(format=2, train=12, val=6, seed=3)
    assert digits_detection.make(tmp_path / 'small', train=12, val=6, seed=3, image_size=96)
    sides = {}
    for size, root in ((160, digits_set), (96, tmp_path / 'small')):
        content = annotations(root, 'train')
        assert {(image['height'], image['width']) for image in content['images']} == {(size, size)}
        assert cv2.imread(str(root / 'train/000001.png')).shape == (size, size, 3)
        boxes = np.array([a['bbox'] for a in content['annotations']])
        assert (boxes[:, :2] + boxes[:, 2:]).max() <= size
        sides[size] = np.median(boxes[:, 2:].max(axis=1))
    assert sides[96] == pytest.approx(0.6 * sides[160], rel=0.25)
    with pytest.raises(FileExistsError, match='image_size'):
        digits_detection.make(tmp_path / 'small', train=12, val=6, seed=3)


def test_labels_are_those_of_the_digits(digits_set):
    target = digits.load_digits().target
    for split in ('train', 'val'):
        for a in annotations(digits_set, split)['annotations']:
            assert a['category_id'] - 1 == target[a['digit_index']]


def test_train_and_val_share_no_digit(digits_set):
    split = {name: {index for index, _, _ in digits_of_split}
             for name, digits_of_split in digits.split_digits(seed=3).items()}
    assert not split['train'] & split['val']
    for name, indices in split.items():
        used = {a['digit_index'] for a in annotations(digits_set, name)['annotations']}
        assert used <= indices


def test_no_two_digits_of_the_split_look_the_same():
    pixels = {name: {strokes.tobytes() for _, _, strokes in digits_of_split}
              for name, digits_of_split in digits.split_digits(seed=0).items()}
    assert not pixels['train'] & pixels['val']


def test_boxes_are_tight_around_what_can_be_seen(monkeypatch):
    """Compare the finished image with the same background without digits."""
    train_digits = digits.split_digits(seed=0)['train']
    backgrounds = []
    make_background = digits_detection.make_background

    def keep(rng, size):
        backgrounds.append(make_background(rng, size))
        return backgrounds[-1].copy()

    monkeypatch.setattr(digits_detection, 'make_background', keep)
    for seed in range(20):
        image, objects = digits_detection.make_image(train_digits, np.random.default_rng(seed))
        changed = np.abs(image.astype(int) - backgrounds[-1]).sum(axis=2) > 12
        everything = np.zeros_like(changed)
        for _, _, (x, y, width, height) in objects:
            inside = changed[y:y + height, x:x + width]
            for border in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert border.any(), 'a box is wider than its digit'
            everything[y:y + height, x:x + width] = True
        assert not (changed & ~everything).any(), 'a digit sticks out of its box'


def test_digits_hardly_overlap(digits_set):
    content = annotations(digits_set, 'train')
    for image in content['images']:
        boxes = [a['bbox'] for a in content['annotations'] if a['image_id'] == image['id']]
        for number, box in enumerate(boxes):
            for other in boxes[:number]:
                assert digits_detection.shared_area(box, other) <= 0.2


def test_shared_area():
    assert digits_detection.shared_area((0, 0, 10, 10), (20, 0, 5, 5)) == 0
    assert digits_detection.shared_area((0, 0, 10, 10), (2, 2, 4, 4)) == 1
    assert digits_detection.shared_area((0, 0, 10, 10), (8, 0, 4, 10)) == pytest.approx(0.5)


def test_same_seed_same_files_and_other_seed_others(digits_set, tmp_path):
    digits_detection.make(tmp_path / 'again', train=12, val=6, seed=3)
    digits_detection.make(tmp_path / 'other', train=12, val=6, seed=4)
    assert contents(tmp_path / 'again') == contents(digits_set)
    name = Path('train/000001.png')
    assert contents(tmp_path / 'other')[name] != contents(digits_set)[name]


def test_finished_set_is_not_made_again(digits_set):
    before = {path: path.stat().st_mtime_ns for path in digits_set.rglob('*')}
    assert not digits_detection.make(digits_set, train=12, val=6, seed=3)
    assert before == {path: path.stat().st_mtime_ns for path in digits_set.rglob('*')}


def test_other_settings_are_refused_and_nothing_is_lost(digits_set):
    before = contents(digits_set)
    with pytest.raises(FileExistsError, match="'train': 12.*'train': 13"):
        digits_detection.make(digits_set, train=13, val=6, seed=3)
    assert contents(digits_set) == before


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='not a digits set'):
        digits_detection.make(tmp_path, train=2, val=2, seed=0)
    assert (tmp_path / 'thesis.txt').read_text() == 'mine'


def test_nothing_remains_of_an_interrupted_run(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits.cv2, 'imwrite', interrupt)
    with pytest.raises(KeyboardInterrupt):
        digits_detection.make(tmp_path / 'set', train=2, val=2, seed=0)
    assert not list(tmp_path.iterdir())


def test_two_processes_that_make_the_same_set_both_succeed(tmp_path, monkeypatch):
    def slow(seed):
        with monkeypatch.context() as other_process:
            other_process.setattr(digits, 'split_digits', split_digits)
            other_process.setattr(digits.os, 'getpid', lambda: 1)
            assert digits_detection.make(tmp_path / 'set', train=2, val=2, seed=0)
        return split_digits(seed)

    split_digits = digits.split_digits
    monkeypatch.setattr(digits, 'split_digits', slow)
    digits_detection.make(tmp_path / 'set', train=2, val=2, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize(('train', 'val'), [(0, 5), (5, 0), (-1, 5)])
def test_image_counts_must_be_positive(tmp_path, train, val):
    with pytest.raises(ValueError, match='at least one image'):
        digits_detection.make(tmp_path / 'set', train=train, val=val, seed=0)
