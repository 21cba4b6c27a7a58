"""A training that leaves the finite numbers ends, and its last checkpoint is finite."""
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')

from mmkd.apis import prepare_config
from mmkd.checkpoints import check_valid, find_invalid, latest_checkpoint, load_checkpoint
from mmkd.commands.export import export
from mmkd.engine.hooks import FiniteCheckHook
from mmkd.errors import MMKDError
from mmkd.models.losses import FeatureLoss
from mmkd.registry import MODELS
from tests.helpers.classifiers import classifier, distill, distill_changed, teacher_of
from tests.helpers.tiny import build
from tests.test_integration.test_classifier_runs import config, images  # noqa: F401


@MODELS.register_module()
class TurnsNaNLoss(FeatureLoss):
    """A loss that is NaN in every call after the eighth."""

    calls = 0

    def compare(self, student, teacher):
        self.calls += 1
        value = student.flatten(1).mean(1)
        return value * float('nan') if self.calls > 8 else value


@MMENGINE_HOOKS.register_module()
class SpoilHook(Hook):
    """Makes a statistic of the student negative in the tenth iteration, which no loss shows."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 9:
            runner.model.backbone.layer1[0].bn1.running_var[0] = -1.0


@pytest.fixture
def run(tmp_path, images):  # noqa: F811
    """Train for two epochs of six iterations; the work directory is ``tmp_path``."""

    def train(model=None, **settings):
        init_default_scope('mmpretrain')
        cfg = config(images, classifier(classes=3), epochs=2)
        if model is not None:
            cfg.model = model
        cfg.work_dir = str(tmp_path)
        if model is not None:
            cfg.default_hooks.teacher_check = dict(evaluate=False)
        cfg.merge_from_dict(settings)
        Runner.from_cfg(prepare_config(cfg)).train()

    return train


@pytest.fixture
def teacher(tmp_path):
    return partial(distill_changed, tmp_path)


def explode(weights):
    """All weights stay finite."""
    for name, value in weights.items():
        if 'conv' in name:
            value.fill_(1e30)


def check_first_checkpoint_stays(work_dir):
    path = latest_checkpoint(str(work_dir))
    assert path.endswith('epoch_1.pth') and not (work_dir / 'epoch_2.pth').exists()
    assert find_invalid(load_checkpoint(path)['state_dict']) is None


@pytest.mark.parametrize(('distilled', 'name'), [(False, 'loss'), (True, 'loss_cls')])
def test_a_learning_rate_that_is_too_high(run, teacher, tmp_path, distilled, name):
    rise = [dict(type='MultiStepLR', milestones=[1], gamma=1e30)]
    message = rf"in iteration [789] because the loss '{name}' is NaN.*learning rate.* is .*epoch_1\.pth"
    with pytest.raises(MMKDError, match=message):
        run(teacher(lambda weights: None) if distilled else None, param_scheduler=rise)
    check_first_checkpoint_stays(tmp_path)


@pytest.mark.parametrize('weight', [1.0, 0.0])
def test_a_method_whose_loss_turns_nan(run, tmp_path, weight):
    model = distill(classifier(classes=3), teacher_of(classes=3), fine=dict(type='mmkd.KD'), bad=dict(
        type='mmkd.FeatureDistill', loss=dict(type='mmkd.TurnsNaNLoss', weight=weight), spot='last_stage'))
    model['student'].pop('data_preprocessor')
    message = r"iteration 9 because the loss 'bad\.loss_feature' is NaN.* of the method 'bad'"
    with pytest.raises(MMKDError, match=message):
        run(ConfigDict(model))
    check_first_checkpoint_stays(tmp_path)


def test_statistics_that_no_loss_shows_are_not_saved(run, tmp_path):
    message = r"iteration 12 because 'backbone\.layer1\.0\.bn1\.running_var' holds negative values"
    with pytest.raises(MMKDError, match=message):
        run(custom_hooks=[dict(type='SpoilHook'), dict(type='EMAHook')])
    check_first_checkpoint_stays(tmp_path)


def test_a_teacher_that_computes_nan(run, teacher):
    model = teacher(explode)
    layer = r"first in its layer 'backbone\.\S+'"
    message = rf"'kd\.loss_student' is NaN: the teacher \w+ computes NaN on this batch, {layer}.* no earlier"
    with pytest.raises(MMKDError, match=message):
        run(model)
    with pytest.raises(MMKDError, match=rf'computes NaN on validation images, {layer}'):
        run(model, **{'default_hooks.teacher_check.evaluate': True})


def test_training_does_not_start_from_weights_that_are_nan(run, tmp_path):
    init_default_scope('mmpretrain')
    weights = build(classifier(classes=3)).state_dict()
    weights['head.fc.bias'][1] = float('nan')
    torch.save(dict(state_dict=weights), tmp_path / 'start.pth')
    with pytest.raises(MMKDError, match=r"weights from '.*start\.pth': 'head\.fc\.bias' holds NaN"):
        run(load_from=str(tmp_path / 'start.pth'))
    with pytest.raises(MMKDError, match=r"checkpoint '.*start\.pth' .*'head\.fc\.bias' holds NaN"):
        export(str(tmp_path / 'start.pth'), str(tmp_path / 'student.pth'))
    assert not (tmp_path / 'student.pth').exists()


@pytest.mark.parametrize(('name', 'value', 'what'), [
    ('backbone.layer2.0.conv1.weight', float('nan'), 'holds NaN'),
    ('backbone.bn1.running_mean', float('-inf'), 'holds infinity'),
    ('backbone.bn1.running_var', -0.5, 'holds negative values'),
])
def test_a_teacher_that_cannot_compute(teacher, name, value, what):
    def change(weights):
        weights[name].view(-1)[-1] = value

    model = teacher(change)
    model.student.data_preprocessor = classifier().data_preprocessor
    with pytest.raises(MMKDError, match=rf"teacher checkpoint '.*' is of no use: '{name}' {what}"):
        MODELS.build(model)


def test_names_of_tensors_are_printed_escaped():
    with pytest.raises(MMKDError) as error:
        check_valid({'a\nb': torch.tensor([float('nan')])}, 'file')
    assert r'a\nb' in str(error.value) and '\n' not in str(error.value)
    check_valid(dict(steps=torch.tensor([-1]), meta='text', weight=torch.tensor([-1.0])), 'file')


def test_a_gradient_scaler_may_skip_some_updates(tmp_path):
    model = torch.nn.Linear(2, 2)
    scaler = SimpleNamespace(is_enabled=lambda: True)
    runner = SimpleNamespace(iter=4, model=model, work_dir=str(tmp_path),
                             optim_wrapper=SimpleNamespace(loss_scaler=scaler))
    hook = FiniteCheckHook(tolerance=2)
    infinite, finite = (dict(loss=torch.tensor(value), loss_cls=torch.tensor(value))
                        for value in (torch.inf, 1.0))
    for outputs in (infinite, infinite, finite, infinite, infinite):
        hook.after_train_iter(runner, 0, outputs=outputs)
    with pytest.raises(MMKDError, match="iteration 5 because the loss 'loss_cls' is infinite"):
        hook.after_train_iter(runner, 0, outputs=infinite)
    hook.after_train_iter(runner, 0, outputs=finite)
    model.weight.data[0] = torch.nan  # such weights would not recover
    with pytest.raises(MMKDError, match="'loss_cls' is infinite"):
        hook.after_train_iter(runner, 0, outputs=infinite)
