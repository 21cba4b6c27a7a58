"""A teacher's logits in files: what they hold, when they are refused, and training steps with them."""
import copy
import json
import os

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from mmkd.datasets import ReplayedDataset
from mmkd.errors import MMKDError
from mmkd.models.teachers import Teacher, TeacherCache, cache, fingerprint_of
from tests.helpers.classifiers import CLASSES, STUDENT, batch, classifier, distill, teacher_of
from tests.helpers.tiny import build

ORIGIN = dict(teacher=dict(depth=18, weights=64 * 'a'), seed=0)


@pytest.fixture(autouse=True)
def _scope(_fresh_process):
    init_default_scope('mmpretrain')


def logits(images: int = 7, classes: int = 20, seed: int = 0) -> torch.Tensor:
    return 5 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


def make(folder, kept: int = 20, views: int = 1, images: int = 7, classes: int = 20) -> TeacherCache:
    """Fill a cache with noise."""
    made = TeacherCache.create(str(folder), ORIGIN, images, classes, kept, views)
    for view in range(views):
        made.write(view, cache.pack(logits(images, classes, seed=view), kept), top1=50.0 + view)
    return made


# Files


def test_all_logits_come_back_as_float16(tmp_path):
    make(tmp_path, views=3)
    views, images = [0, 2, 0, 1, 2], [6, 0, 1, 1, 0]
    expected = torch.stack([logits(seed=view)[image] for view, image in zip(views, images, strict=True)])
    read = TeacherCache(str(tmp_path)).read(views, images)
    assert read.dtype == torch.float32 and torch.equal(read, expected.half().float())


def test_the_largest_logits_come_back_and_the_others_probability(tmp_path):
    make(tmp_path, kept=4)
    read, whole = TeacherCache(str(tmp_path)).read([0] * 7, range(7)), logits()
    largest = whole.topk(4).indices
    assert torch.equal(read.gather(1, largest), whole.gather(1, largest).half().float())
    cached, expected = (one.softmax(dim=1).gather(1, largest) for one in (read, whole))
    torch.testing.assert_close(cached, expected, rtol=0.02, atol=1e-4)
    others = read.scatter(1, largest, torch.nan)
    assert all(row[~row.isnan()].unique().numel() == 1 for row in others)
    torch.testing.assert_close(read.logsumexp(dim=1), whole.logsumexp(dim=1), rtol=0, atol=0.02)


def replace_view(folder, **tensors) -> TeacherCache:
    """Write other tensors into a view, with a digest that fits, as a stranger can."""
    packed = {**cache.pack(logits(), 4), **tensors}
    made = make(folder, kept=4)
    made.write(0, {name: tensor for name, tensor in packed.items() if tensor is not None}, top1=1.0)
    return TeacherCache(str(folder))


@pytest.mark.parametrize('tensors', [
    dict(indices=torch.full((7, 4), 20, dtype=torch.int16)), dict(indices=torch.full((7, 4), -1).short()),
    dict(indices=torch.zeros(7, 4)), dict(indices=None), dict(rest=None),
    dict(values=torch.zeros(6, 4).half()), dict(values=torch.zeros(7, 4)),
    dict(values=None), dict(other=torch.zeros(1))])
def test_a_view_from_a_stranger(tmp_path, tensors):
    with pytest.raises(MMKDError, match='does not hold the logits of 7 images and 20 classes'):
        replace_view(tmp_path, **tensors).read([0], [0])


def test_names_from_a_stranger(tmp_path):
    made = make(tmp_path)
    with pytest.raises(MMKDError, match='different teacher') as caught:
        made.compare({**ORIGIN, 'a\nerror: \x1b[2J': 1})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize('change', [dict(kept=21), dict(kept=0), dict(images=-1), dict(files=[1]),
                                    dict(files={'view_000.safetensors': 1}), dict(classes='x')])
def test_an_index_from_a_stranger(tmp_path, change):
    make(tmp_path)
    content = json.loads((tmp_path / 'cache.json').read_text())
    (tmp_path / 'cache.json').write_text(json.dumps({**content, **change}))
    with pytest.raises(MMKDError, match='cannot be read'):
        TeacherCache(str(tmp_path))


@pytest.mark.parametrize(('classes', 'kept'), [(20, 20), (20, 4), (40_000, 3)])
def test_the_size_is_known_before(tmp_path, classes, kept):
    make(tmp_path, kept=kept, classes=classes, images=50)
    header = 400
    size = os.path.getsize(tmp_path / 'view_000.safetensors')
    assert 0 < size - cache.view_bytes(50, classes, kept) < header


def test_indices_beyond_int16_come_back(tmp_path):
    make(tmp_path, kept=3, classes=40_000)
    read = TeacherCache(str(tmp_path)).read([0] * 7, range(7))
    assert torch.equal(read.argmax(dim=1), logits(classes=40_000).argmax(dim=1))
    assert read.argmax(dim=1).max() >= 2**15


def test_two_views_at_most_are_open(tmp_path, monkeypatch):
    make(tmp_path, views=3)
    reader = TeacherCache(str(tmp_path))
    reader.check(ORIGIN, 3)  # reads every file once
    opened, load = [], cache.load_file
    monkeypatch.setattr(cache, 'load_file', lambda path: opened.append(path[-15:-12]) or load(path))
    for view in (0, 1, 0, 1, 2, 1, 0):
        reader.read([view], [0])
    assert opened == ['000', '001', '002', '000']


@pytest.mark.parametrize('value', [torch.inf, torch.nan, 1e6])
def test_logits_that_do_not_fit_are_refused(value):
    with pytest.raises(MMKDError, match='float16'):
        cache.pack(logits().index_fill(1, torch.tensor([2]), value), 20)


def test_disks_that_are_full(tmp_path):
    assert cache.check_room(str(tmp_path / 'not' / 'there'), 1) > 1
    with pytest.raises(MMKDError, match='fewer --views'):
        cache.check_room(str(tmp_path), 2**80)


# Refusals


@pytest.mark.parametrize(('value', 'what'), [(torch.nan, 'NaN'), (-torch.inf, 'infinity')])
def test_logits_that_are_not_finite_are_refused(tmp_path, value, what):
    """They may have been written by another program, with the right digest."""
    made = make(tmp_path, views=2)
    made.write(1, dict(values=logits().index_fill(1, torch.tensor([2]), value).half()), top1=50.0)
    reader = TeacherCache(str(tmp_path))
    with pytest.raises(MMKDError, match=rf"view_001\.safetensors' .* is of no use: 'values' holds {what}"):
        reader.check(ORIGIN, 2)


def test_a_damaged_file_is_refused(tmp_path):
    made = make(tmp_path, views=2)
    path = tmp_path / 'view_001.safetensors'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    reader = TeacherCache(str(tmp_path))
    reader.read([0], [0])
    with pytest.raises(MMKDError, match=r"view_001.safetensors' .* is damaged"):
        reader.read([1], [0])
    with pytest.raises(MMKDError, match='is damaged'):
        TeacherCache(str(tmp_path)).check(ORIGIN, 2)
    TeacherCache(str(tmp_path)).check(ORIGIN, 1)
    assert [TeacherCache(str(tmp_path)).has(view) for view in (0, 1, 2)] == [True, False, False]
    made.write(1, cache.pack(logits(seed=1), 20), top1=0.0)
    TeacherCache(str(tmp_path)).check(ORIGIN, 2)


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(MMKDError, match='no teacher cache'):
        TeacherCache(str(tmp_path))
    made = make(tmp_path, views=2)
    with pytest.raises(MMKDError, match='lacks view 2.*--views 3'):
        made.check(ORIGIN, 3)
    with pytest.raises(MMKDError, match='lacks view 2'):
        made.read([2], [0])
    with pytest.raises(MMKDError, match='fixed number of views'):
        made.check(ORIGIN, None)
    (tmp_path / 'view_000.safetensors').unlink()
    with pytest.raises(MMKDError, match='lacks view 0'):
        TeacherCache(str(tmp_path)).check(ORIGIN, 2)
    (tmp_path / 'cache.json').write_text('{"images": 7}')
    with pytest.raises(MMKDError, match='cache.json cannot be read'):
        TeacherCache(str(tmp_path))


def test_another_origin_is_named(tmp_path):
    make(tmp_path)
    TeacherCache.create(str(tmp_path), ORIGIN, 7, 20, 20, 1)
    deeper = copy.deepcopy(ORIGIN)
    deeper['teacher'].update(depth=34, weights=64 * 'b')
    with pytest.raises(MMKDError, match='teacher.depth was 18 and is 34, teacher.weights differs;'):
        TeacherCache.create(str(tmp_path), deeper, 7, 20, 20, 1)
    with pytest.raises(MMKDError, match='mix was None and is'):
        TeacherCache(str(tmp_path)).check(dict(ORIGIN, mix=[1]), 1)
    with pytest.raises(MMKDError, match='holds 20 logits'):
        TeacherCache.create(str(tmp_path), ORIGIN, 7, 20, 5, 1)
    assert json.loads((tmp_path / 'cache.json').read_text())['fingerprint'] == ORIGIN


# Training


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
    """Weights of a teacher that is sure of itself."""
    init_default_scope('mmpretrain')
    model = build(teacher_of(classes=6))
    with torch.no_grad():
        model.head.fc.weight.mul_(100)
    path = tmp_path_factory.mktemp('weights') / 'teacher.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def distilling(weights: str, folder=None, method: str = 'mmkd.KD', **settings) -> dict:
    cfg = distill(classifier(), teacher_of(classes=6), method=dict(type=method))
    cfg['teacher'].update(checkpoint=weights, class_mapping=[4, 0, 2, 3, 5], **settings)
    if folder is not None:
        cfg['teacher']['cache'] = str(folder)
    return cfg


@pytest.fixture
def step(weights, tmp_path, monkeypatch):
    """Function that returns the losses of a step with the teacher running, and with a cache of k logits."""

    def step(kept: int, method: str):
        running = build(distilling(weights, method=method))
        data = batch(running)
        for index, sample in enumerate(data['data_samples']):
            sample.set_metainfo(dict(sample_idx=3 - index, view=index % 2))
        logits = running.mmkd.teacher(data['inputs'], data['data_samples'])['cls_outputs'][0]
        expected = running.loss(**data)
        made = TeacherCache.create(str(tmp_path), ORIGIN, 4, CLASSES, kept, 2)
        for view in range(2):
            made.write(view, cache.pack(logits.flip(0), kept), top1=0.0)
        cached = build(distilling(weights, tmp_path, method))
        cached.mmkd.teacher.cache.check(ORIGIN, 2)
        monkeypatch.setattr(cached.mmkd.teacher.model, 'extract_feat', lambda *_: pytest.fail('it ran'))
        return cached.loss(**data), expected

    return step


@pytest.mark.parametrize('method', ['mmkd.KD', 'mmkd.DKD', 'mmkd.SHAKE'])
def test_a_step_with_all_logits_is_the_step_with_the_teacher(step, method):
    cached, expected = step(CLASSES, method)
    assert cached.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(cached[name], expected[name], rtol=2e-3, atol=2e-4)
    assert sum(value for name, value in expected.items() if name.startswith('method.loss')) > 0.1


def test_a_step_with_some_logits_differs_and_is_finite(step):
    cached, expected = step(2, 'mmkd.KD')
    assert cached['method.loss_student'].isfinite()
    assert abs(cached['method.loss_student'] - expected['method.loss_student']) > 1e-3
    assert cached['method.student_teacher_agreement'] == expected['method.student_teacher_agreement']


@pytest.mark.parametrize(('method', 'spot'), [
    ('mmkd.FitNet', 'stage2'), ('mmkd.SP', 'last_stage'), ('mmkd.SOKD', 'backbone.layer3')])
def test_methods_that_want_more_than_logits_are_refused(weights, tmp_path, method, spot):
    make(tmp_path, kept=CLASSES, classes=CLASSES)
    build(distilling(weights, method=method))
    with pytest.raises(MMKDError, match=f"class logits only.*'{spot}'"):
        build(distilling(weights, tmp_path, method))


def test_images_that_are_no_view_are_refused(weights, tmp_path):
    make(tmp_path, kept=CLASSES, classes=CLASSES)
    model = build(distilling(weights, tmp_path))
    with pytest.raises(MMKDError, match='have no view'):
        model.loss(**batch(model))


def test_a_cache_that_was_not_compared_is_not_read(weights, tmp_path):
    """Nothing else would tell a script without the hook that its cache is of other images."""
    make(tmp_path, kept=CLASSES, classes=CLASSES, views=2)
    model = build(distilling(weights, tmp_path))
    data = batch(model)
    for index, sample in enumerate(data['data_samples']):
        sample.set_metainfo(dict(sample_idx=index, view=0))
    for wrong in (dict(ORIGIN, seed=1), None):
        with pytest.raises(MMKDError, match=r'has not been compared .*mmkd\.TeacherCheckHook'):
            model.loss(**data)
        if wrong:
            with pytest.raises(MMKDError, match='seed was 0 and is 1'):
                model.mmkd.teacher.cache.check(wrong, 2)
    model.mmkd.teacher.forward(data['inputs'], data['data_samples'])  # runs the network
    model.mmkd.teacher.cache.check(ORIGIN, 2)
    assert model.loss(**data)['method.loss_student'].isfinite()


def test_a_cache_of_another_number_of_classes_is_refused(weights, tmp_path):
    make(tmp_path, classes=20)
    with pytest.raises(MMKDError, match=f'holds logits of 20 classes, but the student has {CLASSES};'):
        build(distilling(weights, tmp_path))


def test_detectors_are_refused(teacher_config, tmp_path):
    make(tmp_path)
    with pytest.raises(MMKDError, match='for classifiers'):
        Teacher(teacher_config, 'random', cache=str(tmp_path))


# Fingerprints


@pytest.fixture
def folder(tmp_path) -> str:
    """Images of two classes."""
    generator = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(tmp_path / 'images' / name / f'{number}.png'),
                        generator.integers(0, 256, (16, 16, 3), np.uint8))
    return str(tmp_path / 'images')


def draw_elsewhere(results: dict) -> dict:
    """Draw as a transform with a private generator does."""
    results['img'] = np.random.default_rng().integers(0, 256, results['img'].shape, np.uint8)
    return results


def data_config(folder: str, prob: float = 0.5, extra: tuple = (), **settings) -> dict:
    pipeline = [dict(type='mmpretrain.LoadImageFromFile'), dict(type='mmpretrain.RandomFlip', prob=prob),
                *extra, dict(type='mmpretrain.PackInputs')]
    return dict(dict(type='mmkd.ReplayedDataset', views=2, dataset=dict(
        type='mmpretrain.CustomDataset', data_root=folder, pipeline=pipeline)), **settings)


def origin(weights: str, data: dict, student: dict | None = None, **teacher) -> dict:
    """Return the fingerprint of a training."""
    settings = {key: value for key, value in data.items() if key != 'type'}
    teaching = Teacher(**dict(dict(config=teacher_of(classes=6), checkpoint=weights), **teacher))
    return fingerprint_of(teaching, build(student or classifier()), data, ReplayedDataset(**settings))


def test_the_same_training_has_the_same_fingerprint(weights, folder, tmp_path):
    original = origin(weights, data_config(folder))
    content = torch.load(weights)
    torch.save(dict(content['state_dict']), tmp_path / 'other_file.pth')  # the same weights
    os.rename(folder, tmp_path / 'moved')
    other = classifier()
    other.data_preprocessor = dict(STUDENT, mean=[0.0] * 3, std=[255.0] * 3)  # undone for the teacher
    data = data_config(str(tmp_path / 'moved'), views=9)
    assert original == origin(str(tmp_path / 'other_file.pth'), data, other)


def changed_weights(weights: str, tmp_path) -> str:
    content = torch.load(weights)
    content['state_dict']['head.fc.bias'][3] += 1e-3
    torch.save(content, tmp_path / 'changed.pth')
    return str(tmp_path / 'changed.pth')


@pytest.mark.parametrize(('changes', 'difference'), [
    (dict(prob=0.25), 'dataset.config.dataset.pipeline.1.prob was 0.5 and is 0.25'),
    (dict(seed=1), 'dataset.config.seed was None and is 1'),
    (dict(mix=[dict(type='Mixup', alpha=1.0)]), 'config.mix was None and is .*, dataset.pixels differs'),
    ('weights', 'teacher.weights differs'),
    ('mapping', 'teacher.class_mapping was None and is .*4, 0, 2, 3, 5'),
    ('padding', 'student.padding differs'),
    ('image', 'dataset.images was 6 and is 7'),
    ('name', 'dataset.contents differs;'),
    ('content', 'dataset.contents differs, dataset.pixels differs'),
])
def test_what_differs_is_named(weights, folder, tmp_path, changes, difference):
    made = TeacherCache.create(str(tmp_path / 'cache'), origin(weights, data_config(folder)), 6, 2, 2, 2)
    data, student, teacher = data_config(folder), classifier(), {}
    if isinstance(changes, dict):
        data = data_config(folder, **changes)
    elif changes == 'weights':
        teacher.update(checkpoint=changed_weights(weights, tmp_path))
    elif changes == 'mapping':
        teacher.update(class_mapping=[4, 0, 2, 3, 5])
    elif changes == 'padding':
        student.data_preprocessor.update(pad_size_divisor=32)
    elif changes == 'image':
        cv2.imwrite(f'{folder}/dog/3.png', np.zeros((16, 16, 3), np.uint8))
    elif changes == 'name':
        os.rename(f'{folder}/dog/2.png', f'{folder}/dog/9.png')
    else:
        cv2.imwrite(f'{folder}/cat/0.png', np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(MMKDError, match=difference):
        made.compare(origin(weights, data, student, **teacher))


def test_what_cannot_be_replayed_is_refused(weights, folder):
    mixing = classifier(train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)))
    for changes, words in ((dict(student=mixing), 'move it into `mix`'),
                           (dict(batch_norm='train'), "batch_norm='train'"),
                           (dict(checkpoint='random'), 'different weights in every run')):
        with pytest.raises(MMKDError, match=words):
            origin(weights, data_config(folder), **changes)
    with pytest.raises(MMKDError, match='private generator'):
        origin(weights, data_config(folder, extra=(draw_elsewhere, )))
