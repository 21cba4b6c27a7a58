"""The warm-up of what passes between a proxy and the student."""
from types import SimpleNamespace

import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmkd.apis import prepare_config
from mmkd.engine.hooks.warmup_hook import WarmupHook, linear_warmup
from mmkd.errors import MMKDError
from mmkd.models.methods.proxy_distill import PROXY_WARMUP
from tests.helpers import classifiers
from tests.helpers.classifiers import classifier, teacher_of
from tests.helpers.families import detector
from tests.helpers.tiny import build, distill, tiny_config


def method_of(cfg):
    """Build the only method of a classifier's distiller."""
    init_default_scope('mmpretrain')
    method, = build(cfg).mmkd.methods.values()
    return method


def test_the_factor_rises_to_one():
    assert [linear_warmup(iteration, 3) for iteration in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert linear_warmup(0, 0) == 1


@pytest.mark.parametrize(('method', 'warmup'), [
    (dict(type='mmkd.KD'), None),
    (dict(type='mmkd.SHAKE'), PROXY_WARMUP),
    (dict(type='mmkd.SHAKE', placement='teacher'), PROXY_WARMUP),
    (dict(type='mmkd.SHAKE', placement='alone'), PROXY_WARMUP),
    (dict(type='mmkd.DML'), PROXY_WARMUP),
    (dict(type='mmkd.SOKD'), PROXY_WARMUP),
    (dict(type='mmkd.SOKD', init='teacher'), None),
    (dict(type='mmkd.KDTuned'), None),
    (dict(type='mmkd.KDTuned', trainable='head'), None),
    (dict(type='mmkd.KDTuned', trainable='adapter'), None),
    (dict(type='mmkd.SHAKE', warmup=0.0), 0.0),
    (dict(type='mmkd.KD', warmup=0.5), 0.5)], ids=str)
def test_only_proxies_with_random_weights_warm_up_by_default(method, warmup):
    of_detector = build(distill(detector('retinanet'), detector('retinanet', 16), m=dict(method)))
    assert of_detector.mmkd.methods['m'].warmup == warmup
    assert method_of(classifiers.distill(classifier(), teacher_of(), m=method)).warmup == warmup


def test_methods_know_how_far_training_is():
    init_default_scope('mmpretrain')
    model = build(classifiers.distill(classifier(), teacher_of(), ctkd=dict(type='mmkd.CTKD')))
    WarmupHook().before_train_iter(SimpleNamespace(model=model, iter=3, max_iters=12), 0)
    assert model.mmkd.methods['ctkd'].progress == 0.25


@pytest.mark.parametrize('value', [-0.1, 1.5, 'half', True])
def test_a_wrong_warmup(value):
    with pytest.raises(MMKDError, match='methods.kd.warmup. must be a number from 0 to 1 or None'):
        method_of(classifiers.distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', warmup=value)))


@pytest.mark.slow
def test_in_training_only_the_exchange_is_scaled(digits, teacher_config, tmp_path):
    """Eight iterations, of which the first four are the warm-up."""
    cfg = tiny_config(data=digits)
    cfg.model = distill(cfg.model, teacher_config, shake=dict(type='mmkd.SHAKE', warmup=0.5))
    cfg.train_cfg.update(max_epochs=2, val_interval=10)
    cfg.default_hooks.teacher_check = dict(evaluate=False)
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(prepare_config(cfg))
    method, ratios = runner.model.mmkd.methods.shake, []
    plain = {}
    method.register_forward_hook(lambda _, __, losses: plain.update(losses))
    of_student = runner.model.mmkd.losses

    def losses_and_ratios(*args):
        losses = of_student(*args)
        ratios.append([round((losses[f'shake.{name}'] / plain[name]).item(), 4)
                       for name in ('loss_student', 'loss_proxy_student', 'loss_proxy_teacher')])
        return losses

    runner.model.mmkd.losses = losses_and_ratios
    runner.train()
    factors = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0]
    assert ratios == [[factor, factor, 1.0] for factor in factors]


def test_standardization_is_for_classifiers_by_default():
    method = dict(type='mmkd.SHAKE', placement='teacher')
    two_stage = distill(detector('faster_rcnn'), detector('faster_rcnn', 16), m=method)
    assert not build(two_stage).mmkd.methods['m'].standardize
    two_stage['methods']['m']['standardize'] = True
    assert build(two_stage).mmkd.methods['m'].standardize
    method.pop('standardize')
    assert method_of(classifiers.distill(classifier(), teacher_of(), m=method)).standardize


def test_a_bound_that_leaves_no_weights():
    cfg = classifiers.distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', teacher_weights='adaptive',
                                                                 tolerance=0.4))
    cfg['teacher'] = [cfg['teacher'], dict(config=teacher_of(24), checkpoint='random')]
    with pytest.raises(MMKDError, match=r'tolerance=0\.4 is too small for 2 teachers.*at least 0\.50'):
        method_of(cfg)
