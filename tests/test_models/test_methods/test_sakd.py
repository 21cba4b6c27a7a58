"""SAKD: the policy, routing, choices per sample, and what they leave alone."""
import copy

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmpretrain')

from mmkd.checkpoints import student_state_dict
from mmkd.errors import MMKDError
from mmkd.models.connectors import LinearConnector
from mmkd.models.losses import FeatureLoss
from mmkd.models.methods.sakd import SAKD, SpotAdaptiveDistill
from mmkd.models.methods.sakd.policy import SpotPolicy
from mmkd.models.methods.sakd.routing import Adapter
from tests.helpers.classifiers import CLASSES, STUDENT, TEACHER, batch, distill
from tests.helpers.tiny import build
from tests.helpers.two_processes import run_in_two_processes, step_twice
from tests.test_models.test_methods.test_zoo import cifar_network

DISTILLERS = ('FitNet', 'AT', 'SP', 'CC', 'VID', 'RKD', 'PKT', 'FT', 'FSP', 'NST', 'CRD')


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')
    yield
    init_default_scope('mmdet')


def make(method: str | None = 'AT', teacher=None, **settings):
    cfg = dict(type='mmkd.SAKD', method=method, **settings)
    if method == 'CRD':
        cfg.update(negatives=6)
    if method is None:
        cfg = dict(type='mmkd.SpotAdaptiveDistill', **settings)
    model = build(distill(cifar_network(8, STUDENT), teacher or cifar_network(14, TEACHER), sakd=cfg))
    with torch.no_grad():
        model.mmkd.teacher.model.head.fc.weight.mul_(50)
    if method == 'CRD':
        model.mmkd.methods['sakd'].set_train_labels([index % CLASSES for index in range(20)])
    return model


def inputs(model, number: int = 6, seed: int = 0) -> dict:
    data = batch(model, number, size=32, seed=seed)
    for index, sample in enumerate(data['data_samples']):
        sample.set_metainfo(dict(sample_idx=index))
    return data


def losses_of(model, **kwargs) -> dict:
    return model(**inputs(model, **kwargs), mode='loss')


def choose(model, choices, monkeypatch) -> None:
    """Replace what the policy draws; gradients still reach it."""
    method = model.mmkd.methods['sakd']
    monkeypatch.setattr(method, '_choose', lambda step: choices + 0 * method.policy.layer.bias.sum())


# The policy


def test_choices_are_hard_and_their_gradient_is_that_of_the_soft_ones():
    torch.manual_seed(0)
    policy = SpotPolicy(6, 3, temperature=5.0)
    student, teacher = torch.randn(8, 2), torch.randn(8, 4)
    torch.manual_seed(1)
    hard = policy(student, teacher)
    assert set(hard.unique().tolist()) <= {0.0, 1.0} and hard.shape == (8, 3)
    torch.manual_seed(1)
    logits = policy.layer(torch.cat([student, teacher], dim=1)).unflatten(1, (3, 2))
    noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / 5).softmax(-1)[..., 1]
    assert torch.equal(hard.detach(), (soft > 0.5).float())
    weights = torch.randn(8, 3)
    expected = torch.autograd.grad((weights * soft).sum(), policy.layer.weight)
    torch.testing.assert_close(torch.autograd.grad((weights * hard).sum(), policy.layer.weight), expected)


def test_networks_of_one_family_start_with_distilling_everywhere():
    other = cifar_network(14, TEACHER)
    other['backbone'] = dict(type='mmkd.CRDWideResNet', depth=10, width=1)
    other['head']['in_channels'] = 64
    wider = cifar_network(14, TEACHER)
    wider['backbone'].update(base_channels=16)
    wider['head']['in_channels'] = 64
    for teacher, bias in ((None, 10.0), (other, 0.0), (wider, 0.0)):
        layer = make(teacher=teacher).mmkd.methods['sakd'].policy.layer
        assert layer.bias.tolist() == [0.0, bias] * 4
    assert make(same_family=False).mmkd.methods['sakd'].policy.layer.bias.tolist() == [0.0] * 8
    shares = [value for key, value in losses_of(make(), number=32).items() if 'share' in key]
    assert len(shares) == 4 and sum(shares) / 4 > 0.7  # the noise has temperature 5


# Routing


@pytest.mark.parametrize('method', ['AT', 'FitNet', 'SP', 'RKD', None])
def test_without_any_choice_routed_logits_are_the_students_and_with_all_the_teachers(method, monkeypatch):
    model = make(method)
    sakd = model.mmkd.methods['sakd']
    data = inputs(model)
    routed = {}
    monkeypatch.setattr(sakd, '_routing_losses', spy(sakd, routed))
    spots = len(sakd.spot_names)
    for value in (0.0, 1.0):
        choose(model, torch.full((6, spots), value), monkeypatch)
        model(**data, mode='loss')
        with torch.no_grad():
            if value == 0:
                expected = model.eval().head(model.extract_feat(data['inputs']))
            else:
                expected, = model.mmkd.teacher(
                    data['inputs'], data['data_samples'], spots=['cls_outputs'])['cls_outputs']
        model.train()
        torch.testing.assert_close(routed['z'], expected, rtol=1e-4, atol=1e-4)


def spy(sakd, routed):
    """Return `_routing_losses` that puts the routed logits into a dict."""
    original = type(sakd)._routing_losses

    def run(step, choices):
        forward = sakd.routing.forward
        sakd.routing.forward = lambda *args: routed.update(z=forward(*args)) or routed['z']
        try:
            return original(sakd, step, choices)
        finally:
            sakd.routing.forward = forward
    return run


@pytest.mark.parametrize(('source', 'target', 'layer'), [
    ((3, 8, 8), (5, 8, 8), (nn.Conv2d, (1, 1), (1, 1))),
    ((3, 8, 8), (5, 4, 4), (nn.Conv2d, (3, 3), (2, 2))),
    ((3, 4, 4), (5, 8, 8), (nn.ConvTranspose2d, (4, 4), (2, 2))),
    ((3, 2, 3), (5, 8, 9), (nn.ConvTranspose2d, (4, 3), (4, 3)))])
def test_adapters_are_convolutions_with_norm_and_relu_that_change_the_size(source, target, layer):
    adapter = Adapter(source, target)
    convolution, norm, relu = adapter.connector.layers
    assert (type(convolution), convolution.kernel_size, convolution.stride) == layer
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(relu, nn.ReLU)
    assert adapter.connector(torch.randn(2, *source)).shape == (2, *target)
    larger = torch.randn(2, source[0], 3 * source[1], 3 * source[2])  # images of another size
    assert adapter(larger, torch.randn(2, target[0], 24, 21)).shape == (2, target[0], 24, 21)


def test_adapters_of_vectors_are_linear():
    assert isinstance(Adapter((3, ), (5, )).connector, LinearConnector)


@pytest.mark.parametrize('better', [False, True])
def test_the_routing_loss_by_hand(better, monkeypatch):
    model = make('RKD')
    sakd = model.mmkd.methods['sakd']
    assert sakd.gamma == 2
    routed = {}
    monkeypatch.setattr(sakd, '_routing_losses', spy(sakd, routed))
    choices = torch.tensor([[1.0, 0], [0, 0], [1, 1], [0, 0], [0, 0], [0, 0]])
    choose(model, choices, monkeypatch)
    data = inputs(model)
    if better:  # the sample that ends in the teacher is one of which the student knows nothing
        with torch.no_grad():
            model.mmkd.teacher.model.head.fc.weight.zero_()
            model.head.fc.bias.copy_(torch.tensor([0.0, 0, -20, 0, 0]))
    student = copy.deepcopy(model)
    losses = model(**data, mode='loss')
    target = torch.arange(6) % CLASSES
    plain = F.cross_entropy(student.head(student.extract_feat(data['inputs'])), target)
    entropy = F.cross_entropy(routed['z'], target)
    assert (entropy < plain) == better
    torch.testing.assert_close(
        losses['sakd.loss_routing'], (0.5 if better else 2.0) * entropy, rtol=1e-4, atol=1e-5)
    assert losses['sakd.loss_balance'].item() == pytest.approx(3 - 1)
    assert losses['sakd.share_features'].item() == pytest.approx(2 / 6)
    assert losses['sakd.share_logits'].item() == pytest.approx(1 / 6)


@pytest.mark.parametrize('method', ['AT', 'SP', 'RKD'])
def test_the_student_is_the_same_with_and_without_the_routing_loss(method, monkeypatch):
    """Parameters and buffers, bit by bit, after a step."""
    states = []
    for routed in (True, False):
        model = make(method)
        # Samples must change over: adapters do not matter to those that stay in one network.
        choices = (torch.arange(6)[:, None] + torch.arange(4 if method == 'AT' else 2)) % 2
        choose(model, choices.float(), monkeypatch)
        wrapper = build_optim_wrapper(model, dict(
            constructor='mmkd.DistillOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9)))
        losses = losses_of(model)
        if not routed:
            losses = {key: value for key, value in losses.items()
                      if key not in ('sakd.loss_routing', 'sakd.loss_balance')}
        total, _ = model.parse_losses(losses)
        wrapper.backward(total)
        adapters = model.mmkd.methods['sakd'].routing.parameters()
        assert any(p.grad is not None and bool(p.grad.any()) for p in adapters) == routed
        wrapper.step()
        states.append(student_state_dict(dict(state_dict=model.state_dict())))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_policy_and_adapters_have_their_own_learning_rate_and_decay():
    model = make('FitNet')
    wrapper = build_optim_wrapper(model, dict(
        constructor='mmkd.DistillOptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)))
    sakd = model.mmkd.methods['sakd']
    settings = {id(p): (group['lr'], group['weight_decay']) for group in wrapper.param_groups
             for p in group['params']}
    for part in (sakd.policy, sakd.routing):
        assert {settings[id(p)] for p in part.parameters()} == {(0.05, 1e-3)}
    others = [*sakd.inner.parameters(), *model.backbone.parameters()]
    assert {settings[id(p)] for p in others} == {(0.1, 5e-4)}
    assert len(settings) == sum(1 for _ in model.parameters())


def test_schedules_leave_alone_what_the_policy_learns_by(monkeypatch):
    model = make('RKD')
    choose(model, torch.ones(6, 2), monkeypatch)
    losses = []
    for scale in (1.0, 0.0):
        model.mmkd.methods['sakd'].scale = scale
        losses.append(losses_of(copy.deepcopy(model)))
    for name in ('loss_routing', 'loss_kd', 'loss_feature'):
        plain, scaled = (values[f'sakd.{name}'].item() for values in losses)
        assert plain > 0 and scaled == (plain if name == 'loss_routing' else 0)


# Choices


@pytest.mark.parametrize('name', [*DISTILLERS, 'KDSVD', 'PKD', 'CWD', 'MGD', 'ReviewKD'])
def test_the_loss_of_chosen_samples_is_that_of_the_sub_batch_times_the_share(name):
    loss = loss_of(name)
    student, teacher = features(name, requires_grad=True), features(name)
    choices = [torch.tensor([1.0, 0, 1, 1, 0, 0])] * len(student)
    index = torch.tensor([0, 2, 3])
    samples = [type('Sample', (), dict(sample_idx=number)) for number in range(6)]
    torch.manual_seed(0)
    got = loss.masked(student, teacher, choices, samples)
    torch.manual_seed(0)
    alone = loss([s[index] for s in student], [t[index] for t in teacher], [samples[i] for i in index])
    if name == 'PKD':  # whose statistics are those of single images here
        alone = loss.masked(*[[level[index] for level in levels] for levels in (student, teacher)],
                            [torch.ones(3)])
    if name not in ('MGD', 'CRD'):  # which draw other random numbers for fewer samples
        torch.testing.assert_close(got, alone / 2, rtol=1e-4, atol=1e-6)
    gradient = torch.autograd.grad(got, student[-1])[0]
    assert gradient[index].any() and not gradient[torch.tensor([1, 4, 5])].any()


def features(name: str, requires_grad: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(int(requires_grad))
    if name in ('RKD', 'PKT', 'CC', 'CRD'):
        shapes = [(6, 8)]
    elif name in ('SP', 'FitNet', 'FT', 'PKD', 'CWD', 'MGD'):
        shapes = [(6, 8, 4, 4)]
    else:
        shapes = [(6, 4, 8, 8), (6, 8, 4, 4), (6, 8, 4, 4)]
    return [torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes]


def loss_of(name: str) -> FeatureLoss:
    settings = dict(FSP=dict(weight=1.0), CRD=dict(negatives=5), MGD=dict(weight=1.0))
    loss = MODELS.build(dict(type=f'mmkd.{name}Loss', **settings.get(name, {})))
    shapes = [tuple(level.shape[1:]) for level in features(name)]
    loss.build(shapes, shapes)
    if name == 'CRD':
        loss.set_train_labels([number % 3 for number in range(6)])
    return loss.eval()  # batch norm and memory would depend on the other samples


@pytest.mark.parametrize('name', DISTILLERS)
def test_no_chosen_samples_give_exactly_zero_with_gradients(name):
    model = make(name, strategy='never')
    losses = losses_of(model)
    key, = (key for key in losses if 'loss_feature' in key)
    assert losses[key] == 0 and losses['sakd.loss_kd'] == 0
    total, _ = model.parse_losses(losses)
    assert total.item() == pytest.approx(losses['loss_cls'].item(), rel=1e-6)
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize('name', [name for name in DISTILLERS if name != 'CRD'])  # whose memory has moved on
def test_all_samples_chosen_is_the_plain_method(name, monkeypatch):
    model = make(name, strategy='always')
    inner, steps = model.mmkd.methods['sakd'].inner, []
    forward = inner.forward
    monkeypatch.setattr(inner, 'forward', lambda step, choices: steps.append(step) or forward(step, choices))
    losses = losses_of(model)
    assert losses['sakd.share_logits'] == 1 and losses['sakd.loss_feature'] > 0
    torch.testing.assert_close(losses['sakd.loss_feature'], forward(steps[0])['loss_feature'])


@pytest.mark.parametrize('name', DISTILLERS)
def test_all_distillers_step(name):
    model = make(name)
    wrapper = build_optim_wrapper(model, dict(
        constructor='mmkd.DistillOptimWrapperConstructor', optimizer=dict(type='SGD', lr=0.01)))
    before = copy.deepcopy(model.mmkd.teacher.model.state_dict())
    for seed in range(2):
        losses = losses_of(model, seed=seed)
        assert {'sakd.loss_feature', 'sakd.loss_kd', 'sakd.loss_routing', 'sakd.loss_balance'} <= set(losses)
        total, log = model.parse_losses(losses)
        assert all(torch.isfinite(value) for value in log.values()), log
        wrapper.update_params(total)
    policy = model.mmkd.methods['sakd'].policy.layer
    assert policy.weight.grad is None or torch.isfinite(policy.weight.grad).all()
    after = model.mmkd.teacher.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(('strategy', 'share'), [('always', 1.0), ('never', 0.0), ('random', 0.5)])
def test_strategies_without_a_policy(strategy, share):
    model = make('SP', strategy=strategy)
    assert not list(model.mmkd.methods['sakd'].policy.parameters())
    losses = losses_of(model, number=64)
    assert losses['sakd.share_stage3'] == pytest.approx(share, abs=0.2)
    assert 'sakd.loss_routing' not in losses


def test_reversed_distils_what_the_policy_would_not():
    shares = {}
    for strategy in ('adaptive', 'reversed'):
        model = make('AT', strategy=strategy, same_family=False)
        torch.manual_seed(5)
        losses = losses_of(model)
        shares[strategy] = {key: float(value) for key, value in losses.items() if 'share' in key}
        assert losses['sakd.loss_routing'] > 0
    for key, share in shares['adaptive'].items():
        assert share + shares['reversed'][key] == pytest.approx(1)


def test_choices_differ_from_step_to_step_and_leave_other_random_numbers_alone():
    hub = MessageHub.get_current_instance()
    model = make('AT', same_family=False)
    drawn = []
    for iteration in (0, 1, 0):
        hub.update_info('iter', iteration)
        torch.manual_seed(0)
        losses = losses_of(model, number=32)
        drawn.append([float(value) for key, value in losses.items() if 'share' in key])
    hub.update_info('iter', 0)
    assert drawn[0] != drawn[1]
    torch.manual_seed(3)
    expected = torch.rand(2)
    data = inputs(model)
    torch.manual_seed(3)
    model(**data, mode='loss')
    assert torch.equal(torch.rand(2), expected)


def test_an_epochs_report():
    model = make('SP', strategy='always')
    losses_of(model)
    losses_of(model)
    report = model.mmkd.methods['sakd'].epoch_report()
    assert report['spots'] == ['stage3', 'logits']
    assert report['seen'] == [4, 2, 2, 2, 2]  # 6 images of 5 classes, twice
    assert report['chosen'] == [[number, number] for number in report['seen']]
    assert model.mmkd.methods['sakd'].epoch_report()['seen'] == [0] * 5


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(strategy='sometimes'), "`model.methods.sakd.strategy` must be 'adaptive', .* not 'sometimes'"),
    (dict(method='DeiT'), "features or logits, not 'DeiT'"),
    (dict(method='KD', kd_weight=1.0), 'KD distills the outputs itself; leave out `kd_weight`'),
    (dict(method='AB'), "spot 'preactivations' is none of 'stages'"),
    (dict(spot=['stage2', 'stage1']), 'in the order of the network'),
    (dict(spot='stage7'), "no spot 'stage7'"),
])
def test_what_cannot_work_says_why(settings, message):
    with pytest.raises(MMKDError, match=message):
        make(**settings)


def test_routing_needs_a_teacher_in_full_precision():
    cfg = distill(cifar_network(8, STUDENT), cifar_network(14, TEACHER), sakd=dict(type='mmkd.SAKD'))
    cfg['teacher']['precision'] = 'bf16'
    with pytest.raises(MMKDError, match='leave out teacher.precision'):
        build(cfg)
    cfg['methods']['sakd']['strategy'] = 'random'
    build(cfg)


def test_logits_alone():
    losses = losses_of(make(None))
    assert {'sakd.loss_kd', 'sakd.loss_routing', 'sakd.loss_balance', 'sakd.share_logits'} <= set(losses)
    model = make('DIST')
    assert losses_of(model)['sakd.loss_logit'] >= 0


def worker(rank: int, folder: str) -> None:
    init_default_scope('mmpretrain')
    models = {name: make(name) for name in DISTILLERS}
    for name, model in dict(models, never=make('AT', strategy='never')).items():
        step_twice(model, lambda model, seed: inputs(model, seed=seed), name, folder, rank)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tmp_path):
    run_in_two_processes(worker, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        f'{name}.{rank}' for name in (*DISTILLERS, 'never') for rank in range(2)}


def test_the_preset_is_a_class():
    sakd = make('RKD', kd_weight=0.5).mmkd.methods['sakd']
    assert type(sakd) is SAKD and isinstance(sakd, SpotAdaptiveDistill)
    assert (sakd.kd.proxy_to_student, sakd.gamma, sakd.strategy) == (0.5, 2.0, 'adaptive')
    assert sakd.inner.losses[0].weight == 1.0  # of the protocol 'sakd'
    with pytest.raises(MMKDError, match="nearest names are 'FitNet'"):
        make('FitNets')
