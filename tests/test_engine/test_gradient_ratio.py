"""What the log says about the methods of a training: in words, by gradient ratios, and in a warning."""
import json
import math
from glob import glob
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmkd.apis import prepare_config
from mmkd.apis.checks import check_keys
from mmkd.engine.hooks import GradientRatioHook
from mmkd.errors import MMKDError
from mmkd.models.methods.describing import describe
from mmkd.models.methods.table import CAUTIONS, METHODS
from tests.helpers.classifiers import batch, classifier, distill, teacher_of
from tests.helpers.tiny import REPO, build, tiny_config
from tests.helpers.tiny import distill as distill_detector
from tests.test_models.test_methods.test_zoo import make

pytest.importorskip('mmpretrain')


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')
    yield
    init_default_scope('mmdet')


def run(model, iterations, **settings) -> tuple[SimpleNamespace, list[str]]:
    """Take steps with a hook, and return what it got from the runner and what it logged."""
    hook, messages = GradientRatioHook(**settings), []
    runner = SimpleNamespace(model=model, iter=0, message_hub=MessageHub(f'ratio_{id(model)}'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmkd.engine.hooks.gradient_ratio_hook.print_log',
                      lambda message, *args, **kwargs: messages.append(message))
        hook.before_train(runner)
        for runner.iter in iterations:
            hook.before_train_iter(runner, 0)
            model(**batch(model, seed=runner.iter), mode='loss')
            hook.after_train_iter(runner, 0)
    return runner, messages


def student(**methods):
    return build(distill(classifier(), teacher_of(), **methods))


def scalars(runner, name: str) -> list[float]:
    return runner.message_hub.get_scalar(f'train/{name}')._log_history.tolist()


def test_ratios_are_measured_at_intervals():
    model = student(kd=dict(type='mmkd.KD'))
    runner, _ = run(model, range(5), interval=2)
    assert len(scalars(runner, 'kd.gradient_ratio')) == 3
    assert model.mmkd.gradient_balance.counts[0] == 3
    assert scalars(runner, 'kd.gradient_ratio')[-1] == model.mmkd.gradient_balance.last[0] > 0
    assert not any('balance' in name for name in runner.message_hub.log_scalars)


def test_balanced_methods_are_measured_more_often():
    model = student(kd=dict(type='mmkd.KD', weight=1e4, balance='gradient', share=0.5))
    runner, _ = run(model, range(7), balance_interval=6)
    assert len(scalars(runner, 'kd.gradient_ratio')) == 5, 'iterations 0, 1, 2, 4 and 6'
    assert scalars(runner, 'kd.gradient_ratio')[0] == pytest.approx(0.5)
    assert scalars(runner, 'kd.balance_factor')[0] > 0


def test_methods_that_lost_in_the_benchmarks_are_warned_of():
    for settings, warned in ((dict(), True), (dict(balance='gradient'), False)):
        _, messages = run(student(at=dict(type='mmkd.AT', **settings)), [])
        assert any('worse than without a teacher' in message for message in messages) == warned
    _, messages = run(student(kd=dict(type='mmkd.KD')), [])
    assert not any('worse' in message for message in messages)


def test_the_warned_methods_are_those_of_the_measurements():
    kinds = dict(classifier='classifier', retinanet='dense', faster_rcnn='two-stage')
    names = {name.lower(): name for name in METHODS}
    worse = set()
    for path in (REPO / 'docs/benchmarks').glob('*.json'):
        content = json.loads(path.read_text())
        for pair, measured in content.get('pairs', {}).items() if 'superseded' not in content else ():
            for comparison, difference in measured['paired_differences'].items():
                method, _, reference = comparison.partition('-')
                if reference == 'student' and method in names and difference['verdict'] == 'worse':
                    worse.add((names[method], kinds[pair]))
    assert worse == set(CAUTIONS)


def test_a_ratio_has_all_factors():
    model = student(kd=dict(type='mmkd.KD'))
    model.mmkd.methods['kd'].scale = 0.25
    model.mmkd.methods['kd'].warmup_factor = 0.5
    runner, _ = run(model, range(1))
    measured = model.mmkd.gradient_balance.last[0].item()
    assert scalars(runner, 'kd.gradient_ratio') == pytest.approx([measured / 8])


def test_an_ended_method_is_left_out():
    model = student(kd=dict(type='mmkd.KD'), sp=dict(type='mmkd.SP'))
    model.mmkd.methods['sp'].active = False
    runner, _ = run(model, range(1))
    assert list(runner.message_hub.log_scalars) == ['train/kd.gradient_ratio']


def test_a_method_that_outweighs_the_task_is_warned_of_once():
    model = student(kd=dict(type='mmkd.KD'), sp=dict(type='mmkd.SP', weight=1e6))
    _, messages = run(model, range(4), interval=1)
    warning, = [message for message in messages if 'times as large' in message]
    assert 'gradient of sp' in warning and 'model.methods.sp.weight' in warning
    assert "model.methods.sp.balance='gradient'" in warning
    figure = float(warning.partition(' is ')[2].split()[0])
    assert math.isfinite(figure) and figure > GradientRatioHook().warn_above


def test_a_balanced_method_is_not_warned_of():
    model = student(sp=dict(type='mmkd.SP', weight=1e6, balance='gradient'))
    _, messages = run(model, range(3), balance_interval=1)
    assert not any('times as large' in message for message in messages)


# Methods in words


@pytest.mark.parametrize(('cfg', 'words'), [
    (dict(type='mmkd.KD', weight=5, temperature=1, student_task=0.5),
     'KD: KL of class logits from the teacher, weight 5, temperature 1; weight of the task 0.5'),
    (dict(type='mmkd.AT', balance='gradient', share=0.5, warmup=0.1),
     'AT: AT of features at stages, weight 1000; warm-up over 10 % of the training; '
     'balanced to 0.5 times the gradient of the task'),
    (dict(type='mmkd.FitNet', teacher_spot='stage3'),
     'FitNet: FitNet of features at stage2 (teacher: stage3) through ConvConnector, weight 100'),
    (dict(type='mmkd.FT'), 'FT: FT of features at last_stage, weight 200; a first phase of 30 epochs'),
    (dict(type='mmkd.SHAKE', warmup=0, standardize=False),
     'SHAKE: KL of class logits from a CopiedHead, weight 1, which learns from the teacher with weight 1, '
     'from the student with weight 1, temperature 4'),
    (dict(type='mmkd.DIST', weight=2), 'DIST: DIST of class logits, weight 2'),
    (dict(type='mmkd.SAKD', method='SP', strategy='always'),
     "SAKD: SP of features at last_stage, weight 3000, and KL of class logits, weight 1, temperature 4; "
     "strategy 'always' for stage3, logits"),
])
def test_a_method_in_words(cfg, words):
    name = cfg.pop('type').removeprefix('mmkd.')
    model = make('classifier', name, **cfg)
    assert describe(model.mmkd.methods[name.lower()]) == words


@pytest.mark.parametrize(('task', 'name', 'words'), [
    ('retinanet', 'KD', 'foreground weights of boxes or locations'), ('retinanet', 'CrossKD', 'cls_weight 1'),
    ('faster_rcnn', 'PKD', 'PKD of features at neck through ConvConnector, weight 6'),
    ('faster_rcnn', 'SHAKE', 'uniform weights')])
def test_a_method_of_a_detector_in_words(task, name, words):
    settings = dict(layer=1) if name == 'CrossKD' else {}
    assert words in describe(make(task, name, **settings).mmkd.methods[name.lower()])


# Whole trainings


def test_a_misspelled_key():
    cfg = tiny_config()
    method = dict(type='mmkd.KD', balanec='none')
    cfg.model = distill_detector(cfg.model, tiny_config('teacher').model, kd=method)
    with pytest.raises(MMKDError, match=r"kd\.balanec` does not exist; the nearest name is 'balance'"):
        check_keys(cfg)
    cfg.model = distill_detector(cfg.model.student, tiny_config('teacher').model, kd=dict(type='mmkd.KD'))
    cfg.model.balanec = 'gradient'
    with pytest.raises(MMKDError, match=r"`model\.balanec` does not exist; the nearest name is 'balance'"):
        check_keys(cfg)


@pytest.mark.slow
def test_a_training_logs_its_ratios(digits, tmp_path):
    init_default_scope('mmdet')
    cfg = tiny_config(data=digits)
    cfg.model = distill_detector(cfg.model, tiny_config('teacher').model, kd=dict(type='mmkd.KD'),
                                 pkd=dict(type='mmkd.PKD', balance='gradient', share=0.5))
    cfg.train_cfg.update(max_epochs=2, val_interval=10)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.teacher_check = dict(evaluate=False)
    cfg.default_hooks.gradient_ratio = dict(balance_interval=2)
    cfg.work_dir = str(tmp_path)
    Runner.from_cfg(prepare_config(cfg)).train()
    path, = glob(f'{tmp_path}/*/vis_data/scalars.json')
    with open(path) as lines:
        entries = [entry for entry in map(json.loads, lines) if 'loss' in entry]
    first = entries[0]
    assert first['pkd.gradient_ratio'] == pytest.approx(0.5) and first['kd.gradient_ratio'] > 0
    ratios = [entry['pkd.gradient_ratio'] for entry in entries]
    assert ratios[1] != ratios[2] == ratios[3], 'measured in iterations 0, 1 and 2'
    losses = sum(value for name, value in first.items() if 'loss' in name and name != 'loss')
    assert losses == pytest.approx(first['loss'], rel=1e-4), 'ratios are not losses'
    log, = glob(f'{tmp_path}/*/*.log')
    with open(log) as file:
        text = file.read()
    assert 'pkd: PKD: PKD of features at neck' in text
