"""What the check of the teacher says before training."""
import logging
from collections import Counter
from functools import partial

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')

from mmkd.apis import prepare_config
from mmkd.checkpoints import load_checkpoint
from mmkd.engine.hooks import TeacherCheckHook
from mmkd.engine.hooks.teacher_check_hook import _blindness
from mmkd.errors import MMKDError
from tests.helpers.classifiers import distill_changed
from tests.helpers.tiny import distill as distill_detector
from tests.helpers.tiny import tiny_config
from tests.test_integration.test_classifier_runs import config, images  # noqa: F401


@pytest.fixture
def said(monkeypatch):
    """What the hook logs, as pairs of level and text."""
    lines = []
    monkeypatch.setattr('mmkd.engine.hooks.teacher_check_hook.print_log',
                        lambda text, logger, level=logging.INFO: lines.append((level, text)))
    return lines


@pytest.fixture
def check(tmp_path, images, said):  # noqa: F811
    """Check a classifier's teacher, and return what is logged as errors."""

    def before_train(model, **settings):
        init_default_scope('mmpretrain')
        cfg = config(images, model, epochs=1)
        cfg.model, cfg.work_dir = model, str(tmp_path)
        runner = Runner.from_cfg(prepare_config(cfg))
        runner.train_loop, runner.val_loop  # noqa: B018
        TeacherCheckHook(**settings).before_train(runner)
        return [text for level, text in said if level == logging.ERROR]

    return before_train


@pytest.fixture
def teacher(tmp_path):
    return partial(distill_changed, tmp_path)


def one_class(weights):
    weights['head.fc.bias'][1] = 1e4


def keep(weights):
    pass


def test_a_teacher_that_always_predicts_the_same_class(check, teacher):
    error, = check(teacher(one_class), minimum=1.0)
    assert error.startswith('THE TEACHER IS POOR: it predicts class 1 everywhere. Check its checkpoint, ')


def test_a_low_metric(check, teacher):
    error, = check(teacher(keep), minimum=100.1)
    assert 'THE TEACHER IS POOR: accuracy/top1 is ' in error and 'below 100.1' in error


def test_a_metric_that_does_not_exist(check, teacher):
    with pytest.raises(MMKDError, match=r"no metric 'accuracy/top5'; the nearest names are 'accuracy/top1'"):
        check(teacher(keep), metric='accuracy/top5')
    with pytest.raises(MMKDError, match=r"no metric 'xyz'; the metrics are accuracy/top1"):
        check(teacher(keep), metric='xyz')


def test_metrics_without_a_minimum(said):
    hook = TeacherCheckHook()
    assert hook._poor_metrics({'pascal_voc/mAP': 0.1}) == []
    (level, text), = said
    assert level == logging.WARNING and 'teacher_check.metric to one of pascal_voc/mAP' in text
    assert TeacherCheckHook(metric='pascal_voc/mAP', minimum=0.2)._poor_metrics({'pascal_voc/mAP': 0.1})
    assert hook._poor_metrics({'coco/bbox_mAP': float('nan')}) == ['coco/bbox_mAP is nan, below 0.05']


def test_blindness():
    assert _blindness(Counter(), Counter({0: 3})) and _blindness(Counter({2: 5}), Counter({0: 3, 2: 2}))
    for predicted, labeled in ((Counter({2: 5}), Counter({2: 5})), (Counter({2: 5}), Counter()),
                               (Counter({0: 1, 1: 1}), Counter({0: 1, 1: 1}))):
        assert _blindness(predicted, labeled) == []


def test_a_detector_that_finds_nothing(tmp_path, said, digits, teacher_config, teacher_checkpoint):
    checkpoint = load_checkpoint(teacher_checkpoint)
    checkpoint['state_dict']['roi_head.bbox_head.fc_cls.bias'][-1] = 1e4  # everything is background
    torch.save(dict(state_dict=checkpoint['state_dict']), tmp_path / 'blind.pth')
    cfg = tiny_config(data=digits)
    cfg.model = distill_detector(cfg.model, teacher_config, str(tmp_path / 'blind.pth'))
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(prepare_config(cfg))
    runner.train_loop, runner.val_loop  # noqa: B018
    TeacherCheckHook().before_train(runner)
    error, = [text for level, text in said if level == logging.ERROR]
    assert 'its evaluation gave no metric' in error and 'it predicts nothing in any image' in error
