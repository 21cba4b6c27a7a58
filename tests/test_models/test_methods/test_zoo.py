"""Every method of the zoo on a classifier, a two-stage and a dense detector: steps, gradients, processes."""
import functools

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS, init_default_scope

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.methods import PROTOCOLS, ZOO, LogitDistill, TrainLabelsMethod
from mmkd.models.methods.table import METHODS
from tests.helpers.classifiers import CLASSES, STUDENT, TEACHER, batch, classifier, teacher_of
from tests.helpers.classifiers import distill as distil_classifier
from tests.helpers.families import CLASSES as BOX_CLASSES
from tests.helpers.families import detector
from tests.helpers.tiny import build, distill
from tests.helpers.two_processes import run_in_two_processes, step_twice

DETECTORS = ('faster_rcnn', 'retinanet')
OF_LOGITS = [name for name, entry in ZOO.items() if issubclass(entry.cls, LogitDistill)]
STAGED = ('AB', 'FSP', 'FT')
WITH_PARAMETERS = {'FitNet', 'VID', 'AB', 'FT', 'OFD', 'ReviewKD', 'CC', 'CRD', 'FGD', 'MGD', 'CTKD'}
TASKS = dict(classifier='classifier', faster_rcnn='two-stage', retinanet='dense')
CELLS = [(family, name) for family, task in TASKS.items()
         for name, entry in ZOO.items() if task in entry.task]


def cifar_network(depth: int, preprocessor: dict) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmkd.CRDResNet', depth=depth, stem_channels=8, base_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=32,
                  loss=dict(type='CrossEntropyLoss')),
        data_preprocessor=dict(preprocessor))


def make(task: str, *methods: str, **settings):
    """Return a student with a random teacher; the settings are those of the first method."""
    cfgs = {name.lower(): dict(type=f'mmkd.{name}') for name in methods}
    if 'CRD' in methods:
        cfgs['crd'].update(negatives=6)
    cfgs[methods[0].lower()].update(settings)
    if task == 'classifier':
        init_default_scope('mmpretrain')
        cfg = distil_classifier(cifar_network(8, STUDENT), cifar_network(14, TEACHER), **cfgs)
    else:
        init_default_scope('mmdet')
        cfg = distill(detector(task), detector(task, 16), **cfgs)
    model = build(cfg)
    for method in model.mmkd.methods.values():
        if isinstance(method, TrainLabelsMethod) and method.needs_train_labels:
            method.set_train_labels([index % CLASSES for index in range(20)])
    return model


def inputs(task: str, model, seed: int = 0) -> dict:
    if task != 'classifier':
        torch.manual_seed(seed)
        data = demo_mm_inputs(2, [[3, 128, 128], [3, 100, 120]], num_classes=BOX_CLASSES, num_items=[2, 3])
        return model.data_preprocessor(data, True)
    data = batch(model, size=32, seed=seed)
    for index, sample in enumerate(data['data_samples']):
        sample.set_metainfo(dict(sample_idx=index))
    return data


@pytest.fixture(autouse=True)
def _scope():
    yield
    init_default_scope('mmdet')


def reached(model, loss) -> set[str]:
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad),
                            strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = dict(mmkd='own', backbone='trunk', neck='trunk')
    return {parts.get(name.split('.')[0], 'head') for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None and bool(gradient.any())}


def expected_parts(name: str) -> set[str]:
    if name in OF_LOGITS:
        return {'trunk', 'head', 'own'} if name in WITH_PARAMETERS else {'trunk', 'head'}
    return {'trunk', 'own'} if name in WITH_PARAMETERS else {'trunk'}


@pytest.mark.parametrize(('task', 'name'), CELLS)
def test_cell(task, name):
    model = make(task, name)
    method = model.mmkd.methods[name.lower()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for stage in ('first', 'rest') if name in STAGED else ('rest', 'rest'):
        method.in_first_phase = stage == 'first'
        losses = model(**inputs(task, model), mode='loss')
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        terms = [key for key in losses if key.startswith(f'{name.lower()}.loss')]
        if not (name in ('AB', 'FSP') and stage == 'rest'):
            term, = terms
            assert losses[term] > 0
            parts = {'own'} if (name, stage) == ('FT', 'first') else expected_parts(name)
            assert reached(model, losses[term]) == parts
        if stage == 'first':
            assert total.item() == pytest.approx(losses[terms[0]].item()), 'nothing else counts'
        optimizer.zero_grad()
        total.backward()
        assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())
        optimizer.step()
        if stage == 'first':
            method.end_first_phase()
    stock = MODELS.build(cifar_network(8, STUDENT) if task == 'classifier' else detector(task))
    stock.load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))


def worker(rank: int, task: str, folder: str) -> None:
    for one, name in CELLS:
        if one == task:
            model = make(task, name)
            step_twice(model, functools.partial(inputs, task), name, folder, rank)
            if name in STAGED:
                model = make(task, name)
                model.mmkd.methods[name.lower()].in_first_phase = True
                step_twice(model, functools.partial(inputs, task), f'{name} first', folder, rank)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize('task', ['classifier', *DETECTORS])
def test_two_processes(task, tmp_path):
    run_in_two_processes(worker, task, str(tmp_path))
    names = {name for one, name in CELLS if one == task}
    names |= {f'{name} first' for name in names & set(STAGED)}
    assert {path.name for path in tmp_path.iterdir()} == {
        f'{name}.{rank}' for name in names for rank in range(2)}


# Combinations


@pytest.mark.parametrize(('task', 'names'), [
    ('classifier', ('FitNet', 'SHAKE')), ('classifier', ('CRD', 'SHAKE')),
    ('classifier', ('ReviewKD', 'SHAKE')), ('classifier', ('AB', 'SHAKE', 'KD')),
    ('faster_rcnn', ('ReviewKD', 'SHAKE')), ('retinanet', ('ReviewKD', 'SHAKE'))])
def test_methods_together(task, names):
    model = make(task, *names)
    losses = model(**inputs(task, model), mode='loss')
    total, log = model.parse_losses(losses)
    assert {key.split('.')[0] for key in log if '.' in key} == {name.lower() for name in names}
    total.backward()
    assert torch.isfinite(total)


def test_in_a_first_phase_other_methods_wait():
    model = make('classifier', 'AB', 'SHAKE', 'KD')
    method = model.mmkd.methods['ab']
    method.in_first_phase = True
    losses = model(**inputs('classifier', model), mode='loss')
    assert losses['loss_cls'] == 0 and losses['loss_waiting'] == 0 and losses['ab.loss_feature'] > 0
    assert not any(key.startswith(('kd.', 'shake.')) for key in losses)
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    method.in_first_phase = False
    method.end_first_phase()
    losses = model(**inputs('classifier', model), mode='loss')
    assert losses['loss_cls'] > 0 and 'kd.loss_student' in losses and 'ab.loss_feature' not in losses


def test_random_numbers_of_a_loss_leave_those_of_the_training_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    for name in ('CRD', 'MGD'):
        model = make('classifier', name)
        data = inputs('classifier', model)
        torch.manual_seed(3)
        model(**data, mode='loss')
        assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize('name', ['CRD', 'MGD'])
def test_random_numbers_of_a_loss_differ_from_step_to_step(name, monkeypatch):
    from mmengine.logging import MessageHub
    hub = MessageHub.get_current_instance()
    model = make('classifier', name).eval()  # in which neither batch norm nor memory changes
    data = inputs('classifier', model)
    values = []
    for iteration in (0, 1, 0):
        hub.update_info('iter', iteration)
        torch.manual_seed(0)
        values.append(model(**data, mode='loss')[f'{name.lower()}.loss_feature'].item())
    hub.update_info('iter', 0)
    assert values[0] == values[2] != values[1]


# Settings


def test_published_weights():
    assert PROTOCOLS['crd']['FitNet'] == 100 and PROTOCOLS['sakd']['FitNet'] == 1
    for protocol, weights in PROTOCOLS.items():
        for name, weight in weights.items():
            assert METHODS[name].cls(protocol=protocol).loss_cfg['weight'] == weight
    assert METHODS['AT'].cls(weight=3.0).loss_cfg['weight'] == 3
    with pytest.raises(MMKDError, match='protocol'):
        METHODS['AT'].cls(protocol='other')


@pytest.mark.parametrize(('task', 'name', 'settings', 'said'), [
    ('retinanet', 'DKD', {}, 'Use KD'),
    ('retinanet', 'RKD', {}, 'RKD has no default spot in a detector; give it a `spot`'),
    ('classifier', 'FGD', {}, 'FGD has no default spot in a classifier'),
    ('classifier', 'AT', dict(spot='neckk'), "no spot 'neckk'.*nearest names are"),
    ('classifier', 'AT', dict(spot='stage4'), "no spot 'stage4': its backbone has 3 stages"),
    ('classifier', 'AT', dict(spot='stages', teacher_spot='stage1'), '3 levels in the student and 1 in the'),
    ('classifier', 'AT', dict(first_phase_epochs=2), 'no first phase'),
    ('classifier', 'AT', dict(power=2), r'methods\.at\.power` does not exist; the known names are weight'),
    ('classifier', 'AT', dict(spot='features'), 'AT cannot compare .*feature maps'),
])
def test_what_cannot_be_compared_is_told(task, name, settings, said):
    with pytest.raises(MMKDError, match=said):
        make(task, name, **settings)


def test_other_channels_need_a_connector():
    method = dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.CWDLoss'), spot='last_stage')
    cfg = distil_classifier(classifier(), teacher_of(), own=method)
    init_default_scope('mmpretrain')
    with pytest.raises(MMKDError, match=r'channels \[64\], the teacher \[128\]; give a `connector`'):
        build(cfg)
    cfg['methods']['own']['connector'] = dict(type='mmkd.ConvConnector')
    model = build(cfg)
    assert model(**batch(model), mode='loss')['own.loss_feature'] > 0


@pytest.mark.parametrize('name', ['KDSVD', 'FSP', 'PKD', 'CWD'])
def test_connectors_where_shapes_differ_only(name):
    assert not list(make('classifier', name).mmkd.parameters())
    init_default_scope('mmpretrain')
    model = build(distil_classifier(classifier(), teacher_of(), own=dict(type=f'mmkd.{name}')))
    assert list(model.mmkd.parameters())
    model.mmkd.methods['own'].in_first_phase = name == 'FSP'
    assert model(**batch(model), mode='loss')['own.loss_feature'] > 0


def test_several_teachers_have_connectors_of_their_own():
    init_default_scope('mmpretrain')
    cfg = distil_classifier(classifier(), teacher_of(), fitnet=dict(type='mmkd.FitNet'))
    cfg['teacher'] = [cfg['teacher'], dict(config=teacher_of(24), checkpoint='random')]
    model = build(cfg)
    channels = [parts[0].layers[0].out_channels for parts in model.mmkd.methods['fitnet'].connectors]
    assert channels == [32, 48]
    losses = model(**batch(model), mode='loss')
    assert losses['fitnet.loss_feature'] > 0


def test_mixed_images_have_no_one_class():
    student = classifier(train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)))
    cfg = distil_classifier(student, teacher_of(), dkd=dict(type='mmkd.DKD'))
    init_default_scope('mmpretrain')
    with pytest.raises(MMKDError, match='one true class'):
        build(cfg)


@pytest.mark.parametrize('inplace', [True, False])
def test_preactivations_are_what_the_last_relu_is_given(inplace):
    from mmkd.models.spots import Recorder, resolve_spot
    init_default_scope('mmpretrain')
    model = MODELS.build(classifier()).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = inplace
    place = dict(before=resolve_spot(model, 'preactivations', 'student'), after=resolve_spot(
        model, 'stages', 'student'))
    with Recorder(model, place) as recorder:
        model.extract_feat(torch.randn(2, 3, 32, 32))
    assert len(recorder['before']) == len(recorder['after']) == 4
    for before, after in zip(recorder['before'], recorder['after'], strict=True):
        assert (before < 0).any()
        torch.testing.assert_close(before.relu(), after)
