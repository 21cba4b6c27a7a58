"""Running the frozen teacher at the least cost: what it gives stays the same."""
import copy

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.spots import classification_heads, is_two_stage, record, resolve_spot
from mmkd.models.teachers import Teacher
from mmkd.models.teachers import inference as inference_module
from mmkd.models.teachers.inference import TeacherForward
from tests.helpers import classifiers, families


def network(cfg, scope: str):
    """Build a network with statistics of batch norm that change what it gives."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(copy.deepcopy(cfg))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval().requires_grad_(False)


def forward_of(model, *spots, **options) -> TeacherForward:
    forward = TeacherForward(model, **options)
    forward.points.update({spot: resolve_spot(model, spot, 'teacher') for spot in spots})
    return forward


def batch(model, seed: int = 0):
    """Return images and, for two-stage detectors, boxes for every stage."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 96, 128, generator=generator)
    if not is_two_stage(model):
        return images, None
    boxes = torch.tensor([[0.0, 5.0, 5.0, 40.0, 40.0], [1.0, 10.0, 8.0, 60.0, 50.0]])
    return images, [boxes] * len(classification_heads(model))


def calls_of(model) -> list[str]:
    """Return a list to which the name of every layer is added when it computes something."""
    called = []

    def note(name):
        def hook(module, args, output):
            if output is not args[0]:
                called.append(name)
        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note(name))
    return called


@pytest.mark.parametrize('family', families.STOCK)
def test_detectors_give_the_same(family):
    model = network(families.detector(family), 'mmdet')
    forward = forward_of(copy.deepcopy(model), 'cls_outputs', 'features', 'cls_logits')
    for seed in range(2):
        images, rois = batch(model, seed)
        expected = record(model, forward.points, images, rois)
        for spots in (['cls_outputs'], ['features', 'cls_logits']):
            outputs = forward.record(spots, images, rois)
            for spot in spots:
                actual, reference = (classes_of(recorded[spot]) for recorded in (outputs, expected))
                assert len(actual) == len(reference) > 0
                for one, two in zip(actual, reference, strict=True):
                    assert one.is_contiguous()
                    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def classes_of(values: list) -> list[torch.Tensor]:
    """Return all recorded tensors; of the outputs of heads, only the class logits."""
    tensors = []
    for value in values:
        while isinstance(value, (tuple, list)) and isinstance(value[0], (tuple, list)):
            value = value[0]
        tensors += [value] if isinstance(value, torch.Tensor) else list(value)
    return tensors


@pytest.mark.parametrize('family', ['retinanet', 'fcos', 'atss', 'gfl'])
def test_box_branches_are_left_out(family):
    model = network(families.detector(family), 'mmdet')
    forward = forward_of(model, 'cls_logits', 'cls_outputs')
    images, _ = batch(model)
    forward.record(['cls_logits'], images)
    called = calls_of(model)
    forward.record(['cls_logits'], images)
    heads = {name.split('.')[1] for name in called if name.startswith('bbox_head')}
    assert any('cls' in name for name in heads)
    assert not any('reg' in name for name in heads)
    called.clear()
    forward.record(['cls_outputs'], images)  # of which the boxes are a part
    assert any('reg' in name for name in called)
    called.clear()
    model.bbox_head(model.extract_feat(images))
    assert any('reg' in name for name in called)


def test_the_network_ends_where_all_has_been_seen():
    model = network(classifiers.classifier(), 'mmpretrain')
    forward = forward_of(model, 'stage2', 'cls_logits')
    images, _ = batch(model)
    forward.record(['stage2'], images)
    called = calls_of(model)
    forward.record(['stage2'], images)
    assert called[-1].startswith('backbone.layer2') and not any('layer3' in name for name in called)
    called.clear()
    forward.record(['stage2', 'cls_logits'], images)
    assert called[-1] == 'head.fc'


def test_no_boxes():
    model = network(families.detector('faster_rcnn'), 'mmdet')
    forward = forward_of(model, 'cls_logits')
    images, _ = batch(model)
    for boxes in (torch.zeros(0, 5), torch.tensor([[1.0, 10.0, 8.0, 60.0, 50.0]])):
        logits, = forward.record(['cls_logits'], images, [boxes])['cls_logits']
        assert logits.shape == (len(boxes), families.CLASSES + 1)


def test_an_error_on_the_way_is_not_swallowed():
    model = network(classifiers.classifier(), 'mmpretrain')
    forward = forward_of(model, 'cls_logits')
    with pytest.raises(RuntimeError):
        forward.record(['cls_logits'], torch.zeros(1, 4, 32, 32))


class ReadsMemory(nn.Module):
    """Takes its input for one whose channels come first, as operators of MMCV do."""

    def forward(self, x):
        return torch.as_strided(x, x.shape, torch.empty(x.shape).stride())


def test_channels_last_is_given_up_where_an_operator_cannot_deal_with_it():
    model = network(classifiers.classifier(), 'mmpretrain')
    model.backbone.maxpool = nn.Sequential(ReadsMemory(), model.backbone.maxpool)
    images, _ = batch(model)
    forward = forward_of(model, 'cls_logits')
    expected = record(model, forward.points, images)['cls_logits'][0]
    torch.testing.assert_close(forward.record(['cls_logits'], images)['cls_logits'][0], expected)
    assert not forward.channels_last


def deform() -> nn.Module:
    return DeformConv2dPack(16, 16, 3, padding=1)


def modulated() -> nn.Module:
    return ModulatedDeformConv2dPack(16, 16, 3, padding=1)


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """Lines that the forward pass logs."""
    lines = []
    monkeypatch.setattr(inference_module, 'print_log', lambda line, *_: lines.append(line))
    return lines


@pytest.mark.parametrize(('operator', 'words', 'first', 'options'), [
    (deform, 'cannot run with channels last', (), {}),
    (deform, 'cannot run with channels last', ('stage1', ), {}),
    (modulated, 'computes different outputs', (), {}),
    (modulated, 'computes different outputs', ('stage1', ), {}),
    (ReadsMemory, 'computes different outputs', ('stage1', ), dict(precision='bf16')),
], ids=['fails', 'fails-later', 'wrong', 'wrong-later', 'wrong-later-half'])
def test_channels_last_is_given_up_at_whatever_points(operator, words, first, options, log):
    """Operators that are wrong or fail in such memory may lie behind the points that are asked for first."""
    model = network(classifiers.classifier(), 'mmpretrain')
    wrong = operator()
    with torch.no_grad():
        for parameter in wrong.parameters():
            parameter.normal_(std=0.1)
    model.backbone.layer3 = nn.Sequential(wrong, model.backbone.layer3).eval().requires_grad_(False)
    images, _ = batch(model)
    expected = record(copy.deepcopy(model), forward_of(model, 'stage3').points, images)['stage3'][0]
    forward = forward_of(model, *first, 'stage3', **options)
    if first:
        forward.record(first, images)
        assert forward.channels_last == (words == 'computes different outputs')  # the whole backbone is run
    for _ in range(2):
        outputs = forward.record(['stage3'], images)['stage3'][0]
        tolerance = 0.05 if 'precision' in options else 1e-4
        torch.testing.assert_close(outputs, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    assert not forward.channels_last
    assert not any(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
                   for weight in model.parameters() if weight.dim() == 4)
    assert sum(words in line and 'it runs with channels first' in line for line in log) == 1


@pytest.mark.slow
def test_what_is_compiled_is_compiled_again_without_channels_last():
    model = network(classifiers.classifier(), 'mmpretrain')
    backbone = model.backbone
    for name in ('conv1', 'bn1', 'relu', 'maxpool'):  # compiling takes long
        setattr(backbone, name, nn.Identity())
    backbone.layer1, backbone.layer4 = nn.Sequential(nn.Tanh()), nn.Sequential(nn.Tanh())
    backbone.layer2 = nn.Sequential(ReadsMemory(), nn.Tanh())
    backbone.layer3 = nn.Sequential(nn.Conv2d(3, 4, 3)).requires_grad_(False)  # its input lies as before
    images, _ = batch(model)
    forward = forward_of(model, 'stage1', 'stage3', compile=True)
    expected = record(copy.deepcopy(model), forward.points, images)['stage3'][0]
    forward.record(['stage1'], images)
    assert forward.channels_last
    for _ in range(2):
        torch.testing.assert_close(forward.record(['stage3'], images)['stage3'][0], expected)
    assert not forward.channels_last


class ChangesLittle(nn.Module):
    """Is wrong by one per cent where channels come last."""

    def forward(self, x):
        return x if x.is_contiguous() else 1.01 * x


@pytest.mark.parametrize('options', [{}, dict(precision='bf16')], ids=str)
def test_a_small_mistake_is_told_from_rounding(options):
    model = network(classifiers.classifier(), 'mmpretrain')
    model.backbone.maxpool = nn.Sequential(ChangesLittle(), model.backbone.maxpool)
    forward = forward_of(model, 'stage2', **options)
    forward.record(['stage2'], batch(model)[0])
    assert not forward.channels_last


def test_an_idle_layer_that_changes_little_is_run():
    model = network(families.detector('retinanet'), 'mmdet')
    head = model.bbox_head
    plain, images = type(head).forward_single, batch(model)[0]

    def forward_single(self, x):
        classes, boxes = plain(self, x)
        return classes + 0.01 * classes.abs().max() * boxes.detach().tanh().sign().mean(), boxes

    head.forward_single = forward_single.__get__(head)
    with torch.no_grad():
        head.retina_reg.bias.fill_(1.0)
    forward = forward_of(model, 'cls_logits')
    expected = record(model, forward.points, images)['cls_logits']
    for _ in range(2):
        outputs = forward.record(['cls_logits'], images)['cls_logits']
        for actual, reference in zip(classes_of(outputs), classes_of(expected), strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('options', [{}, dict(precision='bf16'), dict(channels_last=False)], ids=str)
def test_under_autocast_what_is_recorded_is_float32(options, log):
    model = network(families.detector('retinanet'), 'mmdet')
    images, _ = batch(model)
    forward = forward_of(model, 'features', 'cls_logits', **options)
    expected = record(model, forward.points, images)
    dtypes = []
    model.backbone.register_forward_hook(lambda module, args, output: dtypes.append(output[0].dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for _ in range(2):
            outputs = forward.record(['features', 'cls_logits'], images)
    for spot in expected:
        for actual, reference in zip(classes_of(outputs[spot]), classes_of(expected[spot]), strict=True):
            assert actual.dtype == torch.float32
            assert 0 < (actual - reference).abs().max() < 0.05 * reference.abs().max()
    assert dtypes[-1] == torch.bfloat16  # the student's autocast covers the teacher
    assert ("the student's autocast" in log[-1]) == ('precision' not in options)


def test_bf16_stays_near():
    model = network(families.detector('retinanet'), 'mmdet')
    images, _ = batch(model)
    forward = forward_of(model, 'features', 'cls_logits', precision='bf16')
    expected = record(model, forward.points, images)
    outputs = forward.record(['features', 'cls_logits'], images)
    for spot in expected:
        for actual, reference in zip(classes_of(outputs[spot]), classes_of(expected[spot]), strict=True):
            assert actual.dtype == torch.float32
            assert 0 < (actual - reference).abs().max() < 0.05 * reference.abs().max()


@pytest.mark.parametrize('spots', [('features', ), ('stage1', 'cls_logits')], ids=str)
def test_compiled(spots):
    model = network(classifiers.classifier(), 'mmpretrain')
    images, _ = batch(model)
    forward = forward_of(model, *spots, compile=True)
    expected = record(model, forward.points, images)
    outputs = forward.record(spots, images)
    for spot in spots:
        for actual, reference in zip(classes_of(outputs[spot]), classes_of(expected[spot]), strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-5)


def test_wrong_options():
    with pytest.raises(MMKDError, match="`precision` of Teacher must be 'fp32', .* not 'int8'"):
        Teacher('teacher.py', precision='int8')
    with pytest.raises(MMKDError, match='for networks with a backbone, and Linear has none'):
        TeacherForward(nn.Linear(1, 1), compile=True)
