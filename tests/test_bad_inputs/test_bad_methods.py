"""A method that cannot be used is refused in one sentence, before the first step."""

import pytest
from mmengine.config import Config


def test_misspelt_distill(refused, files, tmp_path):
    refused('train.py', [files.student, '--distill', 'shkae', '--teacher', files.teacher,
                         '--teacher-checkpoint', files.weights, '--work-dir', tmp_path / 'work'],
            "no method 'shkae'", "nearest names are 'shake'")


@pytest.mark.parametrize(('kind', 'offered'), [
    ('mmkd.SHAEK', "'SHAKE'"), ('SHAEK', "'SHAKE'"), ('mmkd.PDK', "'PKD'"), ('mkd.SHAKE', "'SHAKE'"),
    ('mmkd.FeatureDistil', "'FeatureDistill'"),
])
def test_misspelt_method(train_config, kind, offered):
    train_config(repr(kind), 'nearest names are', offered,
                 options=[f'model.methods.shake.type={kind}'])


def test_another_thing_as_a_method(train_config):
    train_config('PKDLoss', 'not a method', options=['model.methods.shake.type=mmkd.PKDLoss'])


def test_method_without_type(train_config):
    train_config("'other'", '`type`', options=['model.methods.other.temperature=2'])


@pytest.mark.parametrize('name', ['items', 'my.kd'])
def test_impossible_name_of_a_method(refused, files, tmp_path, name):
    methods(refused, files, tmp_path, {name: dict(type='mmkd.KD')}, repr(name))


@pytest.mark.parametrize(('kind', 'setting'), [('SHAKE', 'temperatuer'), ('KD', 'depth')])
def test_unknown_setting_of_a_method(train_config, kind, setting):
    train_config(f'`model.methods.shake.{setting}` does not exist', options=[
        f'model.methods.shake.type=mmkd.{kind}', f'model.methods.shake.{setting}=4'])


@pytest.mark.parametrize(('setting', 'value', 'word'), [
    ('temperature', 0, '`model.methods.shake.temperature` must be a number from 0.01 to 1000, not 0'),
    ('depth', 'heda', "'heda'"), ('placement', 'techer', "'techer'")])
def test_wrong_value_of_a_setting(train_config, setting, value, word):
    train_config(word, options=[f'model.methods.shake.{setting}={value}'])


def methods(refused, files, tmp_path, methods, *words):
    cfg = Config.fromfile(files.distilling)
    cfg.model.methods = methods
    cfg.dump(tmp_path / 'distilling.py')
    return refused('train.py', [tmp_path / 'distilling.py', '--work-dir', tmp_path / 'work'], *words)


def test_no_methods(refused, files, tmp_path):
    methods(refused, files, tmp_path, {}, '`methods` is empty')


@pytest.mark.parametrize(('spots', 'model'), [
    (dict(spot='nek'), 'FasterRCNN'),
    (dict(spot='nek', teacher_spot='neck'), 'student DistilledFasterRCNN'),
    (dict(spot='neck', teacher_spot='nek'), 'teacher FasterRCNN'),
])
def test_misspelt_spot(refused, files, tmp_path, spots, model):
    settings = dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.PKDLoss'), **spots)
    sentence = methods(refused, files, tmp_path, dict(pkd=settings), model, "no spot 'nek'")
    assert sentence.split('nearest names are ')[1].startswith("'neck'")


def test_misspelt_loss_of_a_method(refused, files, tmp_path):
    methods(refused, files, tmp_path,
            dict(pkd=dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.PKDLos'))),
            "'mmkd.PKDLos'", "nearest names are 'PKDLoss'")


@pytest.mark.parametrize(('proxy', 'words'), [
    (dict(type='mmkd.CopeidHead'), ("'mmkd.CopeidHead'", "nearest names are 'CopiedHead'")),
    (dict(type='mmkd.CopiedHead', towr='head'), ('`model.methods.shake.proxy.towr` does not exist', )),
    (dict(type='mmkd.PKDLoss'), ("'mmkd.PKDLoss'", 'not a proxy')),
])
def test_wrong_proxy_of_a_method(refused, files, tmp_path, proxy, words):
    methods(refused, files, tmp_path, dict(shake=dict(type='mmkd.ProxyDistill', proxy=proxy)), *words)


def test_spot_without_feature_maps(refused, files, tmp_path):
    methods(refused, files, tmp_path, dict(pkd=dict(type='mmkd.PKD', spot='rpn_head')),
            "'rpn_head'", 'not reached')


def test_channels_that_do_not_match(refused, files, tmp_path):
    pkd = dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.PKDLoss'), spot='backbone.layer3')
    methods(refused, files, tmp_path, dict(pkd=pkd),
            "'backbone.layer3'", 'channels [32]', '[64]', 'give a `connector`')


def test_channels_of_the_neck_do_not_match(refused, files, tmp_path):
    # The one-line form.
    cfg = Config.fromfile(files.teacher)
    cfg.model.neck.out_channels = 24
    cfg.model.rpn_head.in_channels = 24
    cfg.model.roi_head.bbox_roi_extractor.out_channels = 24
    cfg.model.roi_head.bbox_head.in_channels = 24
    cfg.dump(tmp_path / 'wide.py')
    refused('train.py', [files.student, '--distill', 'pkd', '--teacher', tmp_path / 'wide.py',
                         '--teacher-checkpoint', 'random', '--work-dir', tmp_path / 'work', '--cfg-options',
                         'model.methods.pkd.connector=None'],
            "'neck'", 'channels [16, 16, 16, 16, 16]', '[24, 24, 24, 24, 24]')
