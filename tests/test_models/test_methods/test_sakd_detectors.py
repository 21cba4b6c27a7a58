"""SAKD in detectors: choices per image, routing through the student's heads, and what they leave alone."""
import copy

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.methods.sakd.detector_routing import DetectorRouting
from tests.helpers.families import CLASSES, detector
from tests.helpers.tiny import build, distill
from tests.helpers.two_processes import run_in_two_processes, step_twice


def make(family: str = 'retinanet', method: str | None = 'PKD', teacher_size: int = 16, **settings):
    cfg = dict(type='mmkd.SAKD', method=method, **settings)
    return build(distill(detector(family), detector(family, size=teacher_size), sakd=cfg))


def inputs(model, number: int = 3, seed: int = 0, objects: bool = True) -> dict:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(number):
        corners = torch.rand(index + 1 if objects else 0, 2, generator=generator) * 30
        sizes = 15 + torch.rand(len(corners), 2, generator=generator) * 15
        sample = DetDataSample(metainfo=dict(
            img_shape=(64, 64), pad_shape=(64, 64), ori_shape=(64, 64), batch_input_shape=(64, 64),
            scale_factor=(1.0, 1.0), img_id=index))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners, corners + sizes], dim=1),
            labels=torch.arange(len(corners)) % CLASSES)
        if model.with_mask:
            sample.gt_instances.masks = BitmapMasks(np.ones((len(corners), 64, 64), dtype=np.uint8), 64, 64)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    images = torch.randint(256, (number, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return model.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)


def losses_of(model, **kwargs) -> dict:
    torch.manual_seed(0)
    return model(**inputs(model, **kwargs), mode='loss')


def choose(model, choices, monkeypatch) -> None:
    """Replace what the policy draws; gradients still reach it."""
    method = model.mmkd.methods['sakd']
    monkeypatch.setattr(method, '_choose', lambda step: choices + 0 * method.policy.layer.bias.sum())


def optimizer(model):
    return build_optim_wrapper(model, dict(
        constructor='mmkd.DistillOptimWrapperConstructor', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)))


@pytest.mark.parametrize('method', ['PKD', 'CWD'])
def test_two_real_steps(method):
    model = make(method=method)
    wrapper = optimizer(model)
    sakd = model.mmkd.methods['sakd']
    assert sakd.spot_names == ['level1', 'level2', 'level3', 'level4', 'level5', 'logits']
    before = copy.deepcopy(sakd.state_dict())
    for seed in range(2):
        losses = losses_of(model, seed=seed)
        assert {'sakd.loss_feature', 'sakd.loss_kd', 'sakd.loss_routing', 'sakd.loss_balance',
                'sakd.share_level5', 'sakd.share_logits'} <= set(losses)
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        wrapper.update_params(total)
    after = sakd.state_dict()
    moved = {name for name in before if before[name].is_floating_point()
             and not torch.equal(before[name], after[name])}
    assert 'policy.layer.weight' in moved
    assert any(name.startswith('routing.adapters.level1') for name in moved)


# Routing


ALL = [('retinanet', 'PKD'), ('fcos', 'CWD'), ('atss', 'CrossKD'), ('gfl', 'LD'), ('rtmdet', 'PKD'),
       ('yolox', 'KD'), ('faster_rcnn', 'PKD'), ('cascade_rcnn', 'CWD'), ('mask_rcnn', 'KD')]
SETTINGS = dict(CrossKD=dict(layer=1), LD=dict(kd_weight=1.0))


def spied(model, monkeypatch) -> dict:
    """Return a dict into which the routed losses of every image are put."""
    routed = {}
    forward = DetectorRouting.forward
    monkeypatch.setattr(
        DetectorRouting, 'forward', lambda *args: routed.update(loss=forward(*args)) or routed['loss'])
    return routed


@pytest.mark.parametrize(('family', 'spot'), [
    ('retinanet', ['stages', 'neck']), ('fcos', 'neck'), ('atss', 'neck'), ('gfl', 'stage3')])
def test_without_any_choice_routed_losses_are_those_of_the_student(family, spot, monkeypatch):
    model = make(family, 'CWD', spot=spot)
    routed = spied(model, monkeypatch)
    choose(model, torch.zeros(3, len(model.mmkd.methods['sakd'].spot_names)), monkeypatch)
    model.backbone.eval()
    model.neck.eval()
    data = inputs(model)
    losses = model(**data, mode='loss')
    assert losses['sakd.loss_feature'] == losses['sakd.loss_kd'] == 0
    with torch.no_grad():
        for index in range(3):
            # Twice, because group norm does not take the single value of a level of 1x1.
            features = model.extract_feat(data['inputs'][[index, index]])
            outputs = [[level[:1] for level in levels] for levels in model.bbox_head(features)]
            sample = data['data_samples'][index]
            alone = model.bbox_head.loss_by_feat(*outputs, [sample.gt_instances], [sample.metainfo])
            expected = sum(value if isinstance(value, torch.Tensor) else sum(value)
                           for value in alone.values())
            torch.testing.assert_close(routed['loss'][index], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('family', 'method'), [('cascade_rcnn', 'CWD'), ('mask_rcnn', 'KD')])
def test_the_routed_losses_of_boxes_are_the_students_with_its_rois_and_targets(family, method, monkeypatch):
    model = make(family, method)
    routed = spied(model, monkeypatch)
    choose(model, torch.zeros(3, len(model.mmkd.methods['sakd'].spot_names)), monkeypatch)
    # Not those of proposals, for which other anchors are drawn.
    monkeypatch.setattr('mmkd.models.methods.sakd.detector_routing._dense_loss', lambda *_, **__: 0.0)
    losses = losses_of(model)
    expected = sum(value for name, value in losses.items()
                   if 'loss' in name and 'rpn' not in name and 'mask' not in name and 'sakd' not in name)
    # All images have the same number of sampled boxes, so the mean over images is that over boxes.
    torch.testing.assert_close(routed['loss'].mean(), expected, rtol=1e-4, atol=1e-4)


def test_the_routed_loss_of_proposals_is_the_students(monkeypatch):
    model = make('faster_rcnn', 'PKD')
    model.rpn_head.sampler.num = 10**6  # all anchors, so that nothing is drawn
    routed = spied(model, monkeypatch)
    choose(model, torch.zeros(1, 6), monkeypatch)
    losses = losses_of(model, number=1)
    expected = sum(sum(value) if isinstance(value, list) else value for name, value in losses.items()
                   if 'loss' in name and 'sakd' not in name)
    torch.testing.assert_close(routed['loss'][0], expected, rtol=1e-4, atol=1e-4)


def test_chosen_images_get_the_teachers_adapted_features(monkeypatch):
    model = make('retinanet', 'CWD')
    routed = spied(model, monkeypatch)
    choices = torch.zeros(3, 6)
    choices[1] = 1
    data = inputs(model)
    results = []
    for values in (torch.zeros(3, 6), choices):
        choose(model, values, monkeypatch)
        model(**data, mode='loss')
        results.append(routed['loss'].detach())
    assert (results[0] == results[1]).tolist() == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'method'), ALL)
def test_the_student_is_the_same_with_and_without_the_routing_loss(family, method, monkeypatch):
    """Parameters and buffers, bit by bit, after a step."""
    states = []
    for routed in (True, False):
        model = make(family, method, **SETTINGS.get(method, {}))
        sakd = model.mmkd.methods['sakd']
        choices = (torch.arange(3)[:, None] + torch.arange(len(sakd.spot_names))) % 2
        choices = choices.float().requires_grad_()
        choose(model, choices, monkeypatch)
        wrapper = optimizer(model)
        losses = losses_of(model)
        assert 'sakd.loss_routing' in losses
        if not routed:
            losses = {key: value for key, value in losses.items()
                      if key not in ('sakd.loss_routing', 'sakd.loss_balance')}
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        wrapper.backward(total)
        assert (choices.grad is not None and bool(choices.grad.any())) == routed
        wrapper.step()
        states.append(student_state_dict(dict(state_dict=model.state_dict())))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize('gamma', [1.0, 2.0])
def test_the_losses_of_the_policy_by_hand(gamma, monkeypatch):
    model = make('retinanet', 'CWD', gamma=gamma)
    sakd = model.mmkd.methods['sakd']
    routed = []
    forward = DetectorRouting.forward
    monkeypatch.setattr(
        DetectorRouting, 'forward', lambda *args: routed.append(forward(*args).mean()) or routed[-1])
    choices = torch.zeros(3, 6)
    choices[0, :] = 1
    choose(model, choices, monkeypatch)
    losses = losses_of(model)
    assert len(routed) == (1 if gamma == 1 else 2)
    factor = 1.0 if gamma == 1 else gamma if routed[0] > routed[1] else 1 / gamma
    torch.testing.assert_close(losses['sakd.loss_routing'], factor * routed[0])
    assert losses['sakd.loss_balance'].item() == pytest.approx(3 / 2 - 1)
    assert sakd.spot_names[-1] == 'logits'


# Choices


CROSSED = dict(layer=1, align=False)  # statistics would relate the images
INNER = [('retinanet', 'PKD', {}), ('retinanet', 'CWD', {}), ('retinanet', 'FitNet', dict(weight=1.0)),
         ('retinanet', 'MGD', {}), ('retinanet', 'FGD', {}), ('retinanet', 'AT', dict(weight=1.0)),
         ('retinanet', 'ReviewKD', {}), ('retinanet', 'KD', {}), ('retinanet', 'SHAKE', {}),
         ('fcos', 'CrossKD', CROSSED), ('atss', 'CrossKD', CROSSED), ('gfl', 'CrossKD', CROSSED),
         ('gfl', 'LD', dict(kd_weight=1.0)), ('faster_rcnn', 'DKD', {}), ('cascade_rcnn', 'KD', {})]


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'method', 'settings'), INNER)
def test_the_loss_is_that_of_the_chosen_images(family, method, settings, monkeypatch):
    """It is additive in the choices, 0 without any, and only chosen images get a gradient."""
    model = make(family, method, **settings)
    sakd = model.mmkd.methods['sakd']
    steps, inner = [], sakd.inner.eval()  # batch norm in connectors relates images
    forward = inner.forward
    monkeypatch.setattr(inner, 'forward', lambda step, choices: steps.append(step) or forward(step, choices))
    losses_of(model)
    step, = steps
    number = len(inner.output_spots or sakd.feature_names)
    chosen = torch.tensor([1.0, 0.0, 1.0])
    of_proxies = ('loss_proxy_task', 'loss_proxy_teacher', 'loss_proxy_student')

    def total(choice):
        torch.manual_seed(0)
        losses = forward(step, None if choice is None else [choice] * number)
        return sum(value for name, value in losses.items()
                   if 'loss' in name and name not in of_proxies)

    some, others, every = total(chosen), total(1 - chosen), total(torch.ones(3))
    assert every > 0
    torch.testing.assert_close(some + others, every, rtol=1e-4, atol=1e-6)
    if method != 'PKD':  # whose statistics are those of the batch otherwise
        torch.testing.assert_close(every, total(None), rtol=1e-4, atol=1e-6)
    assert total(torch.zeros(3)) == 0
    outputs = step.student_outputs[inner.student_spots[0]]
    if 'rcnn' in family:
        gradient, = torch.autograd.grad(some, outputs[0][0])
        rois = step.student_outputs['rois'][0]
        assert [bool(gradient[rois[:, 0] == image].any()) for image in range(3)] == [True, False, True]
        return
    while not isinstance(outputs[0], torch.Tensor):
        outputs = outputs[0]
    gradients = torch.autograd.grad(some, outputs, allow_unused=True)
    reached = [any(gradient is not None and bool(gradient[image].any()) for gradient in gradients)
               for image in range(3)]
    assert reached == [True, False, True]


@pytest.mark.parametrize(('family', 'method'), [('retinanet', 'PKD'), ('faster_rcnn', 'CWD'), ('gfl', 'LD')])
def test_never_and_images_without_objects_give_finite_gradients(family, method):
    for settings in (dict(strategy='never'), {}):
        model = make(family, method, **settings)
        losses = losses_of(model, objects=False)
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        total.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
        if settings:
            assert all(value == 0 for name, value in log.items() if name.startswith('sakd.loss_'))


def test_strategies():
    shares = {}
    for strategy in ('adaptive', 'reversed', 'always', 'never', 'random'):
        model = make('retinanet', 'CWD', strategy=strategy, same_family=False)
        losses = losses_of(model)
        shares[strategy] = {name: float(value) for name, value in losses.items() if 'share' in name}
        assert ('sakd.loss_routing' in losses) == (strategy in ('adaptive', 'reversed'))
    assert set(shares['always'].values()) == {1.0} and set(shares['never'].values()) == {0.0}
    for name, share in shares['adaptive'].items():
        assert share + shares['reversed'][name] == pytest.approx(1)


@pytest.mark.parametrize(('family', 'method', 'settings'), [
    ('atss', 'CrossKD', dict(layer=1)), ('faster_rcnn', 'KD', {})])
def test_outputs_without_a_policy(family, method, settings):
    """Nothing but the choices needs to know which row belongs to which image."""
    for strategy in ('always', 'never'):
        losses = losses_of(make(family, method, strategy=strategy, **settings))
        distilled = [value for name, value in losses.items() if name.startswith('sakd.loss')]
        assert distilled and all((value > 0) == (strategy == 'always') for value in distilled)


def test_heads_that_compute_their_loss_in_their_own_way_are_refused(monkeypatch):
    monkeypatch.setattr('mmdet.models.dense_heads.RetinaHead.loss', lambda *_: None, raising=False)
    with pytest.raises(MMKDError, match='loss of single images, which a RetinaHead does not give'):
        make('retinanet', 'CWD')
    make('retinanet', 'CWD', strategy='random')


def test_a_report_counts_images_by_the_classes_in_them():
    model = make('retinanet', 'CWD', strategy='always')
    losses_of(model)  # images with 1, 2 and 3 objects of different classes
    report = model.mmkd.methods['sakd'].epoch_report()
    assert report['spots'][0] == 'level1' and report['shares'] == [1.0] * 6
    assert report['seen'] == [3, 2, 1]
    assert report['chosen'] == [[number] * 6 for number in (3, 2, 1)]


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(method='SP', weight=1.0), 'SP has no loss of a single image: it compares images with one another'),
    (dict(method='AT'), 'AT has no published weight for detectors: give SAKD its `weight`'),
    (dict(method='KD', kd_weight=1.0), 'KD distills the outputs itself; leave out `kd_weight`'),
    (dict(method='CWD', spot='backbone.layer1'), "spot 'backbone.layer1' is none of 'stages'"),
    (dict(method=None, bias=2.0), "no setting 'bias'; name the `method`"),
])
def test_what_cannot_work_says_why(settings, message):
    with pytest.raises(MMKDError, match=message):
        make(**settings)


def test_without_comparable_logits_there_is_no_spot_for_them():
    teacher = detector('retinanet', size=16)
    teacher.bbox_head.anchor_generator.octave_base_scale = 8
    cfg = dict(type='mmkd.SAKD', method='CWD')
    model = build(distill(detector('retinanet'), teacher, sakd=cfg))
    assert model.mmkd.methods['sakd'].spot_names == [f'level{level}' for level in range(1, 6)]
    losses = losses_of(model)
    assert 'sakd.loss_kd' not in losses and losses['sakd.loss_balance'] >= 0
    with pytest.raises(MMKDError, match='cannot be compared'):
        build(distill(detector('retinanet'), teacher, sakd=dict(cfg, kd_weight=1.0)))


# Cost


@pytest.mark.parametrize('spot', ['stages', 'neck'])
def test_skipped_spots_change_neither_the_routed_loss_nor_other_gradients(spot, monkeypatch):
    losses, gradients = [], []
    for skip in (False, True):
        model = make('retinanet', 'CWD', spot=spot, skip_unchosen=skip)
        sakd = model.mmkd.methods['sakd']
        model.backbone.eval()
        choices = torch.zeros(3, len(sakd.spot_names))
        choices[0, 2:] = 1
        choices.requires_grad_()
        monkeypatch.setattr(sakd, '_choose', lambda step, choices=choices: choices)
        value = losses_of(model)['sakd.loss_routing']
        losses.append(value.item())
        gradients.append(torch.autograd.grad(value, choices)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0][:, 2:], gradients[1][:, 2:], rtol=1e-3, atol=1e-5)
    assert gradients[0][:, :2].any()
    assert bool(gradients[1][:, :2].any()) == (spot == 'neck')


def test_the_policy_is_trained_in_every_kth_iteration():
    model = make('retinanet', 'CWD', routing_interval=3)
    hub = MessageHub.get_current_instance()
    trained = []
    for iteration in range(5):
        hub.update_info('iter', iteration)
        losses = losses_of(model)
        trained.append('sakd.loss_routing' in losses)
        assert 'sakd.share_level1' in losses
    hub.update_info('iter', 0)
    assert trained == [True, False, False, True, False]
    total, _ = model.parse_losses(losses)
    total.backward()
    gradients = [parameter.grad for parameter in model.mmkd.methods['sakd'].policy.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)  # DDP waits for them


def test_a_policy_that_has_settled_is_frozen(monkeypatch):
    model = make('retinanet', 'CWD', settle_below=0.1)
    sakd = model.mmkd.methods['sakd']
    for share, frozen in ((0, False), (1, False), (1, True)):
        choose(model, torch.full((3, 6), float(share)), monkeypatch)
        assert 'sakd.loss_routing' in losses_of(model)
        sakd.epoch_report()
        assert sakd.freeze_settled() == frozen
    assert not any(parameter.requires_grad for parameter in sakd.routing.parameters())
    assert not sakd.freeze_settled()
    assert 'sakd.loss_routing' not in losses_of(model)
    resumed = make('retinanet', 'CWD', settle_below=0.1)
    resumed.load_state_dict(model.state_dict())
    assert resumed.mmkd.methods['sakd'].freeze_settled()


def test_choices_and_losses_depend_on_the_saved_state_only():
    """Resuming is exact: nothing but the state of the network and of the random generators matters."""
    first, second = (make('faster_rcnn', 'PKD', same_family=False) for _ in range(2))
    wrapper = optimizer(first)
    wrapper.update_params(first.parse_losses(losses_of(first))[0])
    second.load_state_dict(first.state_dict())
    results = [losses_of(model, seed=1) for model in (first, second)]
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        if 'sakd' in name:
            assert torch.equal(value, results[1][name]), name


def worker(rank: int, folder: str) -> None:
    init_default_scope('mmdet')
    for family, method in (('retinanet', 'PKD'), ('gfl', 'LD'), ('faster_rcnn', 'CWD')):
        # Heads reduce over the processes for every image, and these have different numbers of images.
        step_twice(make(family, method), lambda model, seed: inputs(model, number=2 + rank, seed=seed),
                   f'{family}_{method}', folder, rank)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tmp_path):
    run_in_two_processes(worker, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 6
