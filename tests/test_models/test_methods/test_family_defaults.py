"""Default settings by the kind of the student."""
import pytest

from mmkd.errors import MMKDError
from mmkd.models.methods.family_defaults import FAMILY_DEFAULTS
from mmkd.models.methods.table import METHODS, TASKS
from tests.test_models.test_methods.test_zoo import make


def method(task: str, name: str, **settings):
    return make(task, name, **settings).mmkd.methods[name.lower()]


def test_the_table_names_methods_and_kinds():
    for name, kinds in FAMILY_DEFAULTS.items():
        assert set(kinds) <= set(METHODS[name].task) <= set(TASKS)


def test_weights_of_two_stage_detectors():
    fgd = method('faster_rcnn', 'FGD').losses[0]
    assert (fgd.foreground, fgd.background, fgd.attention, fgd.global_) == (5e-5, 2.5e-5, 5e-5, 5e-7)
    mgd = method('faster_rcnn', 'MGD').losses[0]
    assert (mgd.weight, mgd.mask_ratio, mgd.mask) == (5e-7, 0.45, 'positions')
    dkd = method('faster_rcnn', 'DKD')
    assert (dkd.loss.beta, dkd.loss.temperature, dkd.warmup) == (0.25, 1.0, None)


def test_weights_of_dense_detectors():
    assert method('retinanet', 'FGD').losses[0].foreground == 1e-3
    mgd = method('retinanet', 'MGD').losses[0]
    assert (mgd.weight, mgd.mask_ratio) == (2e-5, 0.65)


def test_weights_of_classifiers():
    mgd = method('classifier', 'MGD').losses[0]
    assert (mgd.weight, mgd.mask_ratio, mgd.mask) == (7e-5, 0.15, 'channels')
    assert method('classifier', 'DKD').warmup == pytest.approx(1 / 12)
    assert method('classifier', 'DKD').loss.beta == 8.0
    assert method('classifier', 'ReviewKD').warmup == pytest.approx(1 / 12)
    assert method('classifier', 'DIST').weight == 2.0 and method('faster_rcnn', 'DIST').weight == 1.0
    inner = make('classifier', 'SAKD', method='MGD').mmkd.methods['sakd'].inner
    assert inner.losses[0].mask == 'channels'


@pytest.mark.parametrize('name', ['AT', 'FT', 'FitNet', 'NST', 'SP', 'VID'])
def test_weights_for_classifiers_are_balanced_on_detectors(name):
    assert method('retinanet', name).is_balanced and method('faster_rcnn', name).is_balanced
    assert not method('classifier', name).is_balanced
    assert not method('retinanet', name, weight=3.0).is_balanced


def test_what_the_config_says_wins():
    assert method('faster_rcnn', 'MGD', weight=1e-6).losses[0].mask_ratio == 0.45
    assert method('faster_rcnn', 'MGD', weight=1e-6).losses[0].weight == 1e-6
    assert not method('retinanet', 'AT', balance='none').is_balanced
    assert method('retinanet', 'AT', weight=1.0, balance='gradient').is_balanced
    assert method('classifier', 'DKD', warmup=0.0).warmup == 0.0


def test_wrong_settings_still_name_their_key():
    with pytest.raises(MMKDError, match=r'model\.methods\.mgd.*mask'):
        method('classifier', 'MGD', mask='rows')
