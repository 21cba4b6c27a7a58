"""What distillation adds to a student as a whole: initialization, several methods, wrong configs."""
import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from tests.helpers.classifiers import STUDENT, classifier, deit, distill, teacher_of
from tests.helpers.classifiers import batch as images
from tests.helpers.tiny import build, tiny_config
from tests.helpers.tiny import distill as distil_detector

RULE = dict(init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.5)])


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')
    yield
    init_default_scope('mmdet')


# A student whose config has a rule for the initialization of the whole network


def make(**methods):
    return build(distill(classifier(**RULE), teacher_of(8), **methods))


def test_a_rule_for_the_whole_student_is_for_the_student_alone():
    torch.manual_seed(0)
    stock = MODELS.build(classifier(**RULE))
    stock.init_weights()
    expected = torch.rand(3)
    for method in ('KD', 'SHAKE', 'SOKD'):
        model = make(one=dict(type=f'mmkd.{method}'))
        assert torch.equal(torch.rand(3), expected)
        for name, value in stock.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), (method, name)


def test_copies_of_the_teacher_stay_copies():
    model = make(tuned=dict(type='mmkd.KDTuned'), sokd=dict(type='mmkd.SOKD', init='teacher'))
    own = model.mmkd.teacher.model.head.fc.weight
    copies = [parameter for name, parameter in model.mmkd.named_parameters() if name.endswith('fc.weight')]
    assert len(copies) == 2
    for copy in copies:
        assert torch.equal(copy, own)


# The losses of several methods


def losses_of(model) -> dict:
    return model(**images(model), mode='loss')


@pytest.mark.parametrize(('student', 'method', 'task'), [
    (classifier(), dict(type='mmkd.SHAKE', standardize_task=True), 'loss_task'),
    (deit(), dict(type='mmkd.DeiT'), 'loss_class'),
])
def test_a_schedule_leaves_the_labels_and_what_a_proxy_learns_by(student, method, task):
    model = build(distill(student, teacher_of(), one=method)).eval()
    before = losses_of(model)
    model.mmkd.methods['one'].scale = 0.25
    after = losses_of(model)
    assert before['loss_cls'] == after['loss_cls'] == 0 and before[f'one.{task}'] > 0
    for name, value in before.items():
        factor = 0.25 if 'loss' in name and not name.endswith((task, 'loss_proxy_teacher')) else 1.0
        torch.testing.assert_close(after[name], factor * value, msg=name)


@pytest.mark.parametrize('student', [classifier(), deit()])
def test_the_logged_loss_is_the_optimized_loss(student):
    model = build(distill(student, teacher_of(), kd=dict(type='mmkd.KD'))).eval()
    losses = losses_of(model)
    optimized, logged = model.parse_losses(losses)
    torch.testing.assert_close(optimized, losses['loss_cls'] + losses['kd.loss_student'])
    assert losses['kd.loss_student'] > 0 and logged['loss'] == optimized
    plain = MODELS.build(student).eval()
    plain.load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))
    assert plain(**images(model), mode='loss')['loss'] == losses['loss_cls']


def test_weights_of_the_task_multiply():
    shake, kd = dict(type='mmkd.SHAKE', standardize_task=True), dict(type='mmkd.KD')
    plain = losses_of(build(distill(classifier(), teacher_of(), shake=shake, kd=kd)))
    less = losses_of(build(distill(classifier(), teacher_of(), shake=shake, kd=dict(kd, student_task=0.1))))
    torch.testing.assert_close(less['shake.loss_task'], 0.1 * plain['shake.loss_task'])
    torch.testing.assert_close(less['kd.loss_student'], plain['kd.loss_student'])
    assert less['loss_cls'] == 0


# What cannot work


def build_with(**methods):
    return build(distill(classifier(), teacher_of(), **methods))


def test_one_method_can_take_the_students_task():
    released = dict(type='mmkd.SHAKE', standardize_task=True)
    with pytest.raises(MMKDError, match='a and b would each replace the task loss'):
        build_with(a=released, b=dict(released, placement='teacher'))


def test_a_name_that_would_be_added_to_the_loss():
    with pytest.raises(MMKDError, match="cannot be called 'kd_loss'"):
        build_with(kd_loss=dict(type='mmkd.KD'))


def test_methods_in_a_list():
    cfg = distill(classifier(), teacher_of())
    cfg['methods'] = [dict(type='mmkd.KD')]
    with pytest.raises(MMKDError, match='`methods` of ClassifierDistiller must be a dict, not'):
        build(cfg)


@pytest.mark.parametrize(('method', 'settings', 'said'), [
    ('KD', dict(weight='0.5'), 'model.methods.one.weight'),
    ('KD', dict(weight=-1.0), 'model.methods.one.weight'),
    ('SHAKE', dict(weight=None), 'model.methods.one.weight'),
    ('DKD', dict(weight=-1.0), 'weight'),
    ('AT', dict(weight='many'), 'weight'),
    ('LD', dict(vlr_weight=None), 'vlr_weight'),
    ('CrossKD', dict(reg_weight=-1.0), 'reg_weight'),
    ('SAKD', dict(kd_weight=-1.0), 'kd_weight'),
    ('AT', dict(spot=[]), 'spot'),
    ('AT', dict(spot=2), 'spot'),
])
def test_settings_of_a_wrong_kind(method, settings, said):
    with pytest.raises(MMKDError, match=said):
        build_with(one=dict(type=f'mmkd.{method}', **settings))


def test_labels_of_images_that_the_preprocessor_mixes():
    mixing = dict(STUDENT, num_classes=5, batch_augments=dict(augments=dict(type='Mixup', alpha=1.0)))
    student = ConfigDict(classifier(), data_preprocessor=mixing)
    with pytest.raises(MMKDError, match='DKD needs one true class'):
        build(distill(student, teacher_of(), dkd=dict(type='mmkd.DKD')))


def test_labels_of_images_that_the_data_mix():
    model = build_with(dkd=dict(type='mmkd.DKD'))
    data = images(model)
    for sample in data['data_samples']:
        sample.set_gt_score(torch.tensor([0.5, 0.5, 0, 0, 0]))
    with pytest.raises(MMKDError, match='DKD needs one true class'):
        model(**data, mode='loss')


def test_settings_of_the_method_inside_sakd():
    assert build_with(one=dict(type='mmkd.SAKD', method='FSP', weight=2.0)).mmkd.methods[
        'one'].inner.loss_cfg['weight'] == 2
    assert build_with(one=dict(type='mmkd.SAKD', method='FSP')).mmkd.methods['one'].inner.loss_cfg[
        'weight'] == 50
    assert build_with(one=dict(type='mmkd.SAKD', method='FitNet', protocol='crd')).mmkd.methods[
        'one'].inner.loss_cfg['weight'] == 100


# Maps of detectors


def test_maps_are_compared_on_one_canvas(batch):
    init_default_scope('mmdet')
    student, teacher = tiny_config().model, tiny_config().model
    teacher.data_preprocessor.pad_size_divisor = 128
    model = build(distil_detector(student, teacher, pkd=dict(type='mmkd.PKD')))
    own = {name: value for name, value in model.state_dict().items() if not name.startswith('mmkd.')}
    model.mmkd.teacher.model.load_state_dict(own)
    model.eval()
    data = model.data_preprocessor(batch, True)
    with torch.no_grad():
        losses = model.loss(data['inputs'], data['data_samples'])
    assert losses['pkd.loss_feature'] < 1e-4  # the student is its teacher
