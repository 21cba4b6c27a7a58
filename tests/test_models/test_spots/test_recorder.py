"""What is recorded stays what the module gave, or it is an error."""
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.spots import HookPoint, Recorder, record, resolve_spot
from tests.helpers.classifiers import batch, classifier, distill, teacher_of
from tests.helpers.tiny import build


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')
    yield
    init_default_scope('mmdet')


class InPlace(nn.Module):
    """Overwrites the inputs and outputs of its layers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1))

    def forward(self, x):
        return self.block(self.norm(x))


def network(seed=0):
    torch.manual_seed(seed)
    return MODELS.build(classifier())


@pytest.mark.parametrize('spot', ['backbone.bn1', 'backbone.layer2.0.bn1', 'backbone.layer2.0.bn2'])
@pytest.mark.parametrize('grad', [False, True])
def test_what_the_next_operation_overwrites_is_an_error(spot, grad):
    model = network()
    points = {spot: resolve_spot(model, spot, 'student')}
    with torch.set_grad_enabled(grad), pytest.raises(
            MMKDError, match=f"output of '{spot}' .* in place.*:input"):
        record(model, points, torch.randn(2, 3, 64, 64))


def test_a_method_at_such_a_spot_is_refused_when_it_is_built():
    method = dict(type='mmkd.FeatureDistill', loss=dict(type='mmkd.FitNetLoss'), spot='backbone.bn1')
    with pytest.raises(MMKDError, match="output of 'backbone.bn1'"):
        build(distill(classifier(), teacher_of(8), x=method))


def test_the_input_of_the_module_that_overwrites_it_is_what_was_given():
    model = network()
    outputs = []
    handle = model.backbone.bn1.register_forward_hook(lambda _, args, output: outputs.append(output.clone()))
    point = resolve_spot(model, 'backbone.relu:input', 'student')
    (recorded, ) = record(model, dict(x=point), torch.randn(2, 3, 64, 64))['x']
    handle.remove()
    assert outputs[0].min() < 0 and torch.equal(recorded, outputs[0])


def test_an_input_that_is_overwritten_inside_the_module_is_an_error():
    model = InPlace()
    with pytest.raises(MMKDError, match="input of 'block'"), Recorder(
            model, dict(x=HookPoint('block', 'input', 0))):
        model(torch.randn(2, 2, 4, 4))


def test_a_network_that_was_stopped_is_checked_as_well():
    model, points = InPlace(), dict(norm=HookPoint('norm'), conv=HookPoint('block.1'))
    with pytest.raises(MMKDError, match="output of 'norm'"), Recorder(model, points, max_records=2):
        model(torch.randn(2, 2, 4, 4))


def test_an_error_of_the_network_is_not_hidden():
    model = InPlace()
    with pytest.raises(RuntimeError, match='channels'), Recorder(model, dict(x=HookPoint('norm'))):
        model(torch.randn(2, 2, 4, 4))
        nn.Conv2d(3, 3, 1)(torch.randn(1, 2, 4, 4))


def test_inference_mode_has_no_versions():
    model = InPlace().eval()
    with torch.inference_mode(), Recorder(model, dict(x=HookPoint('block'))) as recorder:
        output = model(torch.randn(2, 2, 4, 4))
    assert recorder['x'][0] is output


def test_first_and_last_calls():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer, layer)
    points = dict(first=HookPoint('0', 'input', 0, first=True), last=HookPoint('0', last=True),
                  all=HookPoint('0'))
    x = torch.randn(1, 2)
    with Recorder(model, points) as recorder:
        output = model(x)
    assert len(recorder['all']) == 3
    (first, ), (last, ) = recorder['first'], recorder['last']
    assert first is x and last is output


def vgg(**settings):
    cfg = classifier()
    cfg.backbone = dict(type='VGG', depth=11, **settings)
    cfg.head.in_channels = 512
    return cfg


VGGS = dict(plain=dict(), norm=dict(norm_cfg=dict(type='BN')), without_last_pool=dict(with_last_pool=False))


@pytest.mark.parametrize('settings', VGGS.values(), ids=VGGS)
def test_vgg_before_its_last_relus(settings):
    model = MODELS.build(vgg(**settings)).eval()
    points = {spot: resolve_spot(model, spot, 'student') for spot in ('stages', 'preactivations')}
    recorded = record(model, points, torch.randn(2, 3, 64, 64))
    assert [level.shape[1:] for level in recorded['stages'][:2]] == [(64, 32, 32), (128, 16, 16)]
    assert len(recorded['stages']) == len(recorded['preactivations']) == 5
    pairs = zip(recorded['stages'], recorded['preactivations'], strict=True)
    for number, (stage, before) in enumerate(pairs, 1):
        assert before.min() < 0
        pools = number < 5 or settings.get('with_last_pool', True)
        expected = before.relu()
        assert torch.equal(stage, nn.functional.max_pool2d(expected, 2) if pools else expected)


@pytest.mark.parametrize('settings', VGGS.values(), ids=VGGS)
@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_vgg_as_student_and_teacher(settings, role):
    pair = (vgg(**settings), teacher_of(8)) if role == 'student' else (classifier(8), vgg(**settings))
    model = build(distill(*pair, kd=dict(type='mmkd.KD')))
    data = batch(model)
    losses = model.loss(data['inputs'], data['data_samples'])
    total, _ = model.parse_losses(losses)
    total.backward()
    first = next(model.backbone.parameters())
    assert losses['kd.loss_student'] > 0 and first.grad.abs().sum() > 0


def test_features_before_the_relus_of_vgg_are_distilled():
    model = build(distill(vgg(), vgg(norm_cfg=dict(type='BN')), ofd=dict(type='mmkd.OFD')))
    data = batch(model)
    assert model.loss(data['inputs'], data['data_samples'])['ofd.loss_feature'] > 0
