"""Classifiers with every way of who teaches: steps, gradients, processes, checkpoints, equations."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip('mmpretrain')

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.spots import logit_layout
from tests.helpers.classifiers import CLASSES, batch, classifier, deit, distill, teacher_of
from tests.helpers.tiny import build, load_tool
from tests.helpers.two_processes import run_in_two_processes, step_twice

METHODS = {
    'kd': dict(type='mmkd.KD'),
    'kdtuned': dict(type='mmkd.KDTuned'),
    'kdtuned_head': dict(type='mmkd.KDTuned', trainable='head'),
    'kdtuned_adapter': dict(type='mmkd.KDTuned', trainable='adapter'),
    'dml': dict(type='mmkd.DML'),
    'dml_dagger': dict(type='mmkd.DML', reversed=False),
    'shake': dict(type='mmkd.SHAKE'),
    'shake_fc_only': dict(type='mmkd.SHAKE', depth='last_layer'),
    'shake_teacher': dict(type='mmkd.SHAKE', placement='teacher'),
    'shake_released': dict(type='mmkd.SHAKE', placement='teacher', standardize_task=True),
    'shake_alone': dict(type='mmkd.SHAKE', placement='alone'),
    'sokd': dict(type='mmkd.SOKD'),
    'sokd_from_teacher': dict(type='mmkd.SOKD', init='teacher'),
}
STUDENT, PROXY, TASK = 'loss_student', 'loss_proxy_student', 'loss_proxy_task'
TERMS = {
    'kd': {STUDENT}, 'kdtuned': {STUDENT, PROXY}, 'dml': {STUDENT, TASK, PROXY},
    'dml_dagger': {STUDENT, TASK}, 'shake': {STUDENT, 'loss_proxy_teacher', PROXY},
    'sokd': {STUDENT, TASK, 'loss_proxy_teacher', PROXY},
}
TERMS['kdtuned_head'] = TERMS['kdtuned_adapter'] = TERMS['kdtuned']
TERMS['shake_fc_only'] = TERMS['shake_alone'] = TERMS['shake']
TERMS['sokd_from_teacher'] = TERMS['shake_teacher'] = TERMS['sokd']
TERMS['shake_released'] = TERMS['sokd'] | {'loss_task'}


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')
    yield
    init_default_scope('mmdet')


def make(method: str, **settings):
    model = build(distill(classifier(**settings), teacher_of(), **{method: METHODS[method]}))
    # A random teacher is sure of nothing; this one has opinions.
    with torch.no_grad():
        model.mmkd.teacher.model.head.fc.weight.mul_(50)
    return model


def reached(model, loss) -> set[str]:
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad),
                            strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = dict(mmkd='proxy', backbone='trunk', head='classifier')
    return {parts[name.split('.')[0]] for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None and bool(gradient.any())}


def expected_parts(method: str, term: str) -> set[str]:
    if term in ('loss_student', 'loss_task'):
        return {'trunk', 'classifier'}
    return {'trunk', 'proxy'} if method in ('shake', 'shake_fc_only') else {'proxy'}


@pytest.mark.parametrize('method', METHODS)
def test_cell(method):
    model = make(method)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        losses = model(**batch(model, seed=step), mode='loss')
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        if step == 0:
            terms = {name.split('.')[1] for name in log if name.startswith(f'{method}.loss')}
            assert terms == TERMS[method]
            for term in terms:
                assert reached(model, losses[f'{method}.{term}']) == expected_parts(method, term), term
        optimizer.zero_grad()
        total.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        assert all(p.grad is None for p in model.mmkd.teacher.model.parameters())
        optimizer.step()
    stock = MODELS.build(classifier())
    stock.load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))


def worker(rank: int, folder: str) -> None:
    init_default_scope('mmpretrain')
    for method in METHODS:
        step_twice(make(method), other_batch, method, folder, rank)


def other_batch(model, seed: int) -> dict:
    return batch(model, seed=seed)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tmp_path):
    run_in_two_processes(worker, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        f'{method}.{rank}' for method in METHODS for rank in range(2)}


# What the networks see


def test_teachers_logits_in_training_are_those_of_mmpretrains_inferencer(tmp_path):
    """Same image, two ways: the student's batch, converted, and MMPretrain's own preprocessing."""
    from mmpretrain.apis import ImageClassificationInferencer
    teacher = MODELS.build(teacher_of())
    teacher.init_weights()
    with torch.no_grad():
        teacher.head.fc.weight.mul_(50)
    checkpoint = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=teacher.state_dict(), meta=dict(
        dataset_meta=dict(classes=tuple('abcde')))), checkpoint)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    config = tmp_path / 'teacher.py'
    model = teacher_of()
    model.pop('data_preprocessor')
    from mmengine.config import Config
    Config(dict(
        default_scope='mmpretrain', model=model, data_preprocessor=dict(teacher_of().data_preprocessor),
        test_dataloader=dict(dataset=dict(pipeline=pipeline)))).dump(config)

    student = build(dict(
        type='mmkd.ClassifierDistiller', student=classifier(),
        teacher=dict(config=str(config), checkpoint=str(checkpoint)), methods=dict(kd=METHODS['kd'])))
    image = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()  # BGR, as loaded
    from mmpretrain.structures import DataSample
    data = student.data_preprocessor(dict(
        inputs=torch.from_numpy(image).permute(2, 0, 1)[None],
        data_samples=[DataSample().set_gt_label(0)]), True)
    inside = student.mmkd.teacher(data['inputs'], data['data_samples'])['cls_outputs'][0][0]
    inferencer = ImageClassificationInferencer(str(config), str(checkpoint), device='cpu')
    scores = inferencer(image)[0]['pred_scores']
    assert scores.max() - scores.min() > 0.1
    torch.testing.assert_close(inside.softmax(dim=0), torch.as_tensor(scores), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('augment', ['Mixup', 'CutMix'])
def test_teacher_and_proxies_see_the_mixed_images_and_soft_labels(augment):
    settings = dict(train_cfg=dict(augments=dict(type=augment, alpha=1.0)))
    student = classifier(**settings)
    student.head.loss = dict(type='CrossEntropyLoss', use_soft=True)
    model = build(distill(student, teacher_of(), sokd=METHODS['sokd']))
    data = batch(model)
    scores = torch.stack([sample.gt_score for sample in data['data_samples']])
    assert ((scores > 0) & (scores < 1)).any(), 'nothing was mixed'
    looked_at = []
    model.mmkd.teacher.model.backbone.register_forward_pre_hook(lambda _, args: looked_at.append(args[0]))
    losses = model(**data, mode='loss')
    seen = looked_at[-1]
    mean, std = (torch.tensor(values).flip(0)[:, None, None] for values in (
        teacher_of().data_preprocessor.mean[::-1], teacher_of().data_preprocessor.std[::-1]))
    own_mean, own_std = (torch.tensor(classifier().data_preprocessor[key])[:, None, None]
                         for key in ('mean', 'std'))
    pixels = data['inputs'] * own_std + own_mean
    torch.testing.assert_close(seen, (pixels.flip(1) - mean) / std, rtol=1e-4, atol=1e-4)
    # The proxy's task loss is the cross entropy with the mixed labels.
    proxy = model.mmkd.methods['sokd'].proxies[0]
    with torch.no_grad(), model.mmkd.recorder(model) as recorder:
        model.extract_feat(data['inputs'])
    assert recorder['cls_outputs'] == []
    torch.manual_seed(0)
    outputs, loss = proxy(step_of(model, data), 0, True)
    by_hand = -(scores * outputs[0].log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, by_hand)
    assert torch.isfinite(sum(value for name, value in losses.items() if 'loss' in name))


def step_of(model, data):
    from mmkd.models.spots import Recorder, resolve_spot
    from mmkd.models.step import Step
    places = {spot: resolve_spot(model, spot, 'student') for spot in model.mmkd.student_spots}
    with Recorder(model, places) as recorder:
        model.head(model.extract_feat(data['inputs']))
    taught = model.mmkd.teacher(data['inputs'], data['data_samples'])
    seen = {spot: recorder[spot] for spot in places}
    return Step(model, data['inputs'], data['data_samples'], seen, [taught])


def test_preprocessor_at_the_top_of_the_config_reaches_the_student():
    student = classifier()
    preprocessor = student.pop('data_preprocessor')
    cfg = distill(student, teacher_of(), kd=METHODS['kd'])
    model = MODELS.build(dict(cfg, data_preprocessor=preprocessor))
    assert model.data_preprocessor.mean.flatten().tolist() == preprocessor['mean']
    assert model.mmkd.teacher.model.data_preprocessor.mean.flatten().tolist() == [100.0, 110.0, 120.0]


# SHAKE's released form, by hand


@pytest.mark.parametrize('standardize_task', [False, True])
def test_all_terms_of_the_released_shake(standardize_task):
    """With β = 1 and τ = 4: KL(sg S‖P) + KL(sg P‖S) + CE(P, y) + MSE(P, T), and CE(S, y)."""
    model = build(distill(classifier(), teacher_of(), shake=dict(
        type='mmkd.SHAKE', placement='teacher', standardize_task=standardize_task)))
    data = batch(model)
    labels = torch.tensor([sample.gt_label.item() for sample in data['data_samples']])
    proxy = model.mmkd.methods['shake'].proxies[0]
    losses = model(**data, mode='loss')
    with torch.no_grad():
        s = model.head(model.extract_feat(data['inputs']))
        t = model.mmkd.teacher(data['inputs'], data['data_samples'], spots=['cls_outputs'])['cls_outputs'][0]
        p = proxy(step_of(model, data), 0, False)[0][0]
    raw, (s_, p_, t_) = (s, p), (standardized(s), standardized(p), standardized(t))
    torch.testing.assert_close(losses['shake.loss_student'], kl(p_, s_))
    torch.testing.assert_close(losses['shake.loss_proxy_student'], kl(s_, p_))
    torch.testing.assert_close(losses['shake.loss_proxy_teacher'], ((p_ - t_)**2).mean())
    own, other = (s_, p_) if standardize_task else raw
    torch.testing.assert_close(losses['shake.loss_proxy_task'], F.cross_entropy(other, labels))
    task = losses['shake.loss_task'] if standardize_task else losses['loss_cls']
    torch.testing.assert_close(task, F.cross_entropy(own, labels))
    if standardize_task:
        assert losses['loss_cls'] == 0


def standardized(z):
    return math.pi * (z - z.mean(dim=1, keepdim=True)) / (
        z.var(dim=1, unbiased=False, keepdim=True) + 1e-7).sqrt()


def kl(target, prediction, tau=4.0):
    p, q = (target / tau).softmax(dim=1), (prediction / tau).softmax(dim=1)
    return tau**2 * (p * (p / q).log()).sum(dim=1).mean()


# SOKD


def test_the_bridge_from_the_teachers_weights_starts_as_the_teacher():
    model = make('sokd_from_teacher')
    proxy = model.mmkd.methods['sokd_from_teacher'].proxies[0]
    names = {name.split('.')[1] for name, _ in proxy.tail.named_parameters() if name.startswith('backbone')}
    assert names == {'layer4'}
    with torch.no_grad():
        proxy.tail.head.fc.weight.copy_(model.mmkd.teacher.model.head.fc.weight)  # make() changed it
        proxy.eval()
        data = batch(model)
        step = step_of(model, data)
        outputs, _ = proxy(step, 0, False)
    torch.testing.assert_close(outputs[0], step.teacher_outputs[0]['cls_outputs'][0])


def test_the_bridge_from_random_weights_does_not():
    model = make('sokd')
    tail = model.mmkd.methods['sokd'].proxies[0].tail
    theirs = model.mmkd.teacher.model.state_dict()
    for name, value in tail.state_dict().items():
        if name.endswith('conv1.weight'):
            assert not torch.equal(value, theirs[name])


def test_the_bridge_becomes_a_teacher():
    model = make('sokd')
    tail = model.mmkd.methods['sokd'].proxies[0].tail
    config, state = load_tool('model_converters/export_teacher.py').improved_teacher(model)
    improved = MODELS.build(config.model)
    improved.load_state_dict(state)
    data = batch(model)
    step = step_of(model, data)
    model.eval()
    improved.eval()
    with torch.no_grad():
        inside = model.mmkd.methods['sokd'].proxies[0](step, 0, False)[0][0]
        outside = improved(model.mmkd.teacher.convert(data['inputs'], data['data_samples']))
    torch.testing.assert_close(inside, outside)
    assert set(tail.state_dict()) <= set(state)


# Networks of timm


def of_timm(name: str = 'resnet18') -> dict:
    return dict(type='mmpretrain.TimmClassifier', model_name=name, num_classes=CLASSES,
                data_preprocessor=dict(type='ClsDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3))


@pytest.mark.parametrize('method', ['kd', 'kdtuned', 'shake', 'shake_teacher'])
def test_a_teacher_of_timm(method):
    pytest.importorskip('timm')
    model = build(distill(classifier(), of_timm('regnety_002'), **{method: METHODS[method]}))
    total, log = model.parse_losses(model(**batch(model), mode='loss'))
    total.backward()
    assert log[f'{method}.loss_student'] > 0
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_student_of_timm_can_be_resumed():
    pytest.importorskip('timm')
    model = build(distill(of_timm(), teacher_of(), sokd=METHODS['sokd']))
    other = build(distill(of_timm(), teacher_of(), sokd=METHODS['sokd']), seed=1)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(
        model.parameters(), other.parameters(), strict=True))


# DeiT


@pytest.mark.parametrize('hard', [True, False])
def test_distillation_token(hard):
    model = build(distill(deit(), teacher_of(), deit=dict(type='mmkd.DeiT', hard=hard)))
    with torch.no_grad():
        for name in ('head', 'head_dist'):
            getattr(model.head.layers, name).weight.normal_()
    data = batch(model)
    losses = model(**data, mode='loss')
    labels = torch.tensor([sample.gt_label.item() for sample in data['data_samples']])
    with torch.no_grad():
        cls_token, dist_token = model.extract_feat(data['inputs'])[-1]
        of_class, of_token = model.head.layers.head(cls_token), model.head.layers.head_dist(dist_token)
        t = model.mmkd.teacher(data['inputs'], data['data_samples'])['cls_outputs'][0]
    share = 0.5 if hard else 0.1
    token = F.cross_entropy(of_token, t.argmax(dim=1)) if hard else kl(t, of_token, 3.0)
    torch.testing.assert_close(losses['deit.loss_class'], (1 - share) * F.cross_entropy(of_class, labels))
    torch.testing.assert_close(losses['deit.loss_token'], share * token)
    assert losses['loss_cls'] == 0
    model.parse_losses(losses)[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    MODELS.build(deit()).load_state_dict(student_state_dict(dict(state_dict=model.state_dict())))


def test_shake_on_top_of_the_distillation_token():
    model = build(distill(deit(), teacher_of(), deit=dict(type='mmkd.DeiT'), shake=METHODS['shake']))
    total, log = model.parse_losses(model(**batch(model), mode='loss'))
    total.backward()
    assert {'deit.loss_class', 'deit.loss_token', 'shake.loss_student'} <= set(log)
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_deit_needs_a_distillation_token():
    with pytest.raises(MMKDError, match='DistilledVisionTransformer under a DeiTClsHead, not LinearClsHead'):
        build(distill(classifier(), teacher_of(), deit=dict(type='mmkd.DeiT')))


# Pairs


@pytest.mark.parametrize('method', ['kd', 'sokd', 'shake_teacher', 'kdtuned', 'kdtuned_head'])
def test_class_mapping(method):
    cfg = distill(classifier(), teacher_of(classes=7), **{method: METHODS[method]})
    with pytest.raises(MMKDError, match='has 7 classes and the student 5'):
        MODELS.build(copy.deepcopy(cfg))
    cfg['teacher']['class_mapping'] = [6, 0, 2, 1, 5]
    model = build(cfg)
    total, _ = model.parse_losses(model(**batch(model), mode='loss'))
    total.backward()
    assert torch.isfinite(total)


@pytest.mark.parametrize('weights', ['equal', 'adaptive'])
@pytest.mark.parametrize('method', ['KD', 'SHAKE', 'SOKD'])
def test_several_teachers(weights, method):
    cfg = distill(classifier(), teacher_of(), m=dict(type=f'mmkd.{method}', teacher_weights=weights))
    cfg['teacher'] = [cfg['teacher'], dict(config=teacher_of(24), checkpoint='random')]
    model = build(cfg)
    total, log = model.parse_losses(model(**batch(model), mode='loss'))
    total.backward()
    assert torch.isfinite(total) and log['m.loss_student'] > 0
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_detector_cannot_teach_a_classifier():
    from tests.helpers.families import detector
    with pytest.raises(MMKDError, match='RetinaNet is not an MMPretrain classifier'):
        build(dict(distill(classifier(), None, kd=METHODS['kd']), teacher=dict(
            config=dict(default_scope='mmdet', model=detector('retinanet')), checkpoint='random')))


def test_places_are_for_detectors():
    with pytest.raises(MMKDError, match="sample_weight='foreground' is for detectors"):
        build(distill(classifier(), teacher_of(), kd=dict(type='mmkd.KD', sample_weight='foreground')))


def test_the_layout_of_a_classifier():
    layout = logit_layout(MODELS.build(classifier()), 'student')
    assert (layout.of_images, layout.activation, layout.num_classes, layout.channels) == (
        True, 'softmax', CLASSES, CLASSES)


def test_building_a_teacher_does_not_shift_random_numbers():
    numbers = []
    for method in ('kd', 'sokd', 'shake_alone'):
        model = make(method)
        data = batch(model)
        torch.manual_seed(3)
        loss = model(**data, mode='loss')['loss_cls']
        numbers.append((loss.item(), torch.rand(1).item()))
    assert len(set(numbers)) == 1
