"""A checkpoint says what it was trained with, and resuming with something else is told."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmkd.engine.run_fingerprint import check_fingerprint, fingerprint_of_run
from mmkd.errors import MMKDError
from tests.helpers.classifiers import classifier, distill, teacher_of
from tests.helpers.tiny import build


@pytest.fixture
def settings(tmp_path):
    """Function that returns the fingerprint of a training that a function has changed."""
    init_default_scope('mmpretrain')
    torch.save(dict(state_dict=build(teacher_of(), 0).state_dict()), tmp_path / 'teacher.pth')
    torch.save(dict(state_dict=build(teacher_of(), 1).state_dict()), tmp_path / 'other.pth')

    def settings(change=lambda cfg: None) -> dict:
        model = distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', temperature=4.0))
        model['teacher']['checkpoint'] = str(tmp_path / 'teacher.pth')
        cfg = Config(dict(
            model=model, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
            train_dataloader=dict(batch_size=4, num_workers=1, dataset=dict(type='CustomDataset'))))
        change(cfg)
        return fingerprint_of_run(SimpleNamespace(cfg=cfg, model=build(cfg.model)))

    settings.folder = tmp_path
    return settings


def changed(key: str, value):
    return lambda cfg: cfg.merge_from_dict({key: value})


def test_the_same_settings(settings):
    moved = changed('train_dataloader.dataset.data_root', 'elsewhere')
    assert settings()['teacher.0.weights'] == settings()['teacher.0.weights']
    assert check_fingerprint(settings(), settings(), 'a.pth') is None
    assert check_fingerprint(settings(), settings(moved), 'a.pth') is None
    more_workers = changed('train_dataloader.num_workers', 2)
    assert check_fingerprint(settings(), settings(more_workers), 'a.pth') is None


def test_another_teacher(settings):
    other = changed('model.teacher.checkpoint', str(settings.folder / 'other.pth'))
    with pytest.raises(MMKDError, match=r'teacher\.0\.weights was of SHA-256 \w{8} and is now of SHA-256'):
        check_fingerprint(settings(), settings(other), 'a.pth')


@pytest.mark.parametrize(('key', 'value', 'said'), [
    ('model.methods.kd.type', 'mmkd.DKD', "model.methods.kd.type was 'mmkd.KD' and is now 'mmkd.DKD'"),
    ('model.methods.dkd', dict(type='mmkd.DKD'), "model.methods.dkd.type was not set and is now 'mmkd.DKD'"),
    ('model.student.head.loss.type', 'LabelSmoothLoss', "head.loss.type was 'CrossEntropyLoss' and is now"),
    ('train_cfg.type', 'IterBasedTrainLoop', "train_cfg.type was 'EpochBasedTrainLoop'"),
    ('optim_wrapper.optimizer.type', 'Adam', "optim_wrapper.optimizer.type was 'SGD' and is now 'Adam'")])
def test_another_training(settings, key, value, said):
    saved = settings()

    def change(cfg) -> None:
        if key == 'model.student.head.loss.type':
            cfg.model.student.head.loss.label_smooth_val = 0.1
        if key == 'model.methods.kd.type':
            cfg.model.methods.kd.pop('temperature')
        cfg.merge_from_dict({key: value})

    with pytest.raises(MMKDError) as error:
        check_fingerprint(saved, settings(change), "'a.pth'")
    assert str(error.value).startswith("'a.pth' belongs to another training: ") and said in str(error.value)


@pytest.mark.parametrize(('key', 'value', 'said'), [
    ('optim_wrapper.optimizer.lr', 0.2, 'optim_wrapper.optimizer.lr was 0.1 and is now 0.2.'),
    ('model.methods.kd.temperature', 2.0, 'model.methods.kd.temperature was 4.0 and is now 2.0.'),
    ('train_dataloader.batch_size', 8, 'train_dataloader.batch_size was 4 and is now 8.'),
    ('train_cfg.max_epochs', 9, 'train_cfg.max_epochs was 2 and is now 9.')])
def test_other_settings(settings, key, value, said):
    warning = check_fingerprint(settings(), settings(changed(key, value)), "'a.pth'")
    assert warning == f"'a.pth' was written with other settings: {said}"


def test_values_from_a_file_stay_on_one_short_line(settings):
    saved = dict(settings(), **{'optim_wrapper.optimizer.lr': 'x\n\x1b[31m' * 99})
    warning = check_fingerprint(saved, settings(), 'a.pth')
    assert len(warning) < 300 and warning.isprintable()
