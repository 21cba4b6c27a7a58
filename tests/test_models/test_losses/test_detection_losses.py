"""CWD, MGD and FGD, which compare the maps of detectors."""
import math

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.connectors import ConvConnector
from mmkd.models.losses.cwd import CWDLoss, channel_divergence
from mmkd.models.losses.fgd import FGDLoss, GlobalContext, attention_maps, foreground_scale
from mmkd.models.losses.mgd import MGDLoss
from mmkd.registry import MODELS

BOXES = ([[10, 4, 30, 20], [16, 8, 24, 12]], [[40, 30, 63, 47]])


def sample(boxes, shape=(48, 64)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return DetDataSample(gt_instances=InstanceData(bboxes=boxes),
                         metainfo=dict(img_shape=shape, batch_input_shape=(48, 64)))


def samples():
    return [sample(boxes) for boxes in BOXES]


def connected(loss, student, teacher):
    loss.build([tuple(s.shape[1:]) for s in student], [tuple(t.shape[1:]) for t in teacher])
    return loss


def alignment(student, teacher):
    """The 1x1 convolution that the presets of MGD and FGD use if channels differ."""
    connector = ConvConnector(kernel_size=1, norm=False, relu=False, skip_same=True)
    connector.build(tuple(student.shape[1:]), tuple(teacher.shape[1:]))
    return connector.double()


def shaken(loss):
    """Randomize every parameter, because FGD's blocks start as the identity."""
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return loss


@pytest.fixture(params=['CWDLoss', 'MGDLoss', 'FGDLoss'])
def loss(request):
    torch.manual_seed(0)
    built = MODELS.build(dict(type=f'mmkd.{request.param}', weight=1.0))
    built.build([(4, 6, 8), (4, 3, 4)], [(4, 6, 8), (4, 3, 4)])
    return built


def levels(dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.randn(2, 4, 6, 8).to(dtype), torch.randn(2, 4, 3, 4).to(dtype)]


# What the losses have in common


def test_one_value_per_sample_and_level(loss):
    values = loss.values(levels(), levels(), samples())
    assert [value.shape for value in values] == [(2, ), (2, )] and not loss.is_relational


def test_a_sample_counts_the_same_in_any_batch(loss):
    if isinstance(loss, MGDLoss):
        loss.mask_ratio = 0.0
    teacher = [2 * t.flip(3) for t in levels()]
    whole = loss.values(levels(), teacher, samples())
    alone = loss.values([s[1:] for s in levels()], [t[1:] for t in teacher], samples()[1:])
    for value, one in zip(whole, alone, strict=True):
        torch.testing.assert_close(value[1:], one)


def test_a_gradient_step_moves_the_student_toward_the_teacher(loss):
    student = [s.requires_grad_() for s in levels()]
    teacher = [t.flip(0) for t in levels()]

    def value(features):
        torch.manual_seed(2)
        return loss(features, [t.detach() for t in teacher], samples())

    before = value(student)
    gradients = torch.autograd.grad(before, student)
    step = 1e-3 / max(g.abs().max() for g in gradients)
    after = value([(s - step * g).detach() for s, g in zip(student, gradients, strict=True)])
    assert all(g.abs().max() > 0 for g in gradients) and after < before


def test_every_trainable_part_gets_a_gradient(loss):
    shaken(loss)
    loss([s.requires_grad_() for s in levels()], [t.flip(0) for t in levels()], samples()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    shaken(loss)
    student = [100 * s for s in levels(dtype)]
    teacher = [100 * t.flip(0).repeat(1, 1, 2, 1) for t in levels(dtype)]  # Resampled, in float32 too.
    torch.manual_seed(2)
    value = loss(student, teacher, samples())
    torch.manual_seed(2)
    expected = loss([s.float() for s in student], [t.float() for t in teacher], samples())
    assert value.dtype == torch.float32 and torch.isfinite(value)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_under_autocast_the_value_is_in_float32(loss, dtype):
    shaken(loss)
    student, teacher = levels(dtype), [300 * t.flip(0) for t in levels(dtype)]
    torch.manual_seed(2)
    expected = loss([s.float() for s in student], [t.float() for t in teacher], samples())
    torch.manual_seed(2)
    with torch.autocast('cpu', dtype=dtype):
        value = loss(student, teacher, samples())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize('scale', [0.0, 1e4])
def test_zero_and_large_features_and_a_batch_of_one_are_finite(loss, scale):
    student = [(scale * s[:1]).requires_grad_() for s in levels()]
    value = loss(student, [torch.zeros_like(s) for s in student], samples()[:1])
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(p.grad).all() for p in [*student, *loss.parameters()])


def test_teacher_maps_are_resampled(loss):
    teacher = [torch.randn(2, 4, 12, 16), torch.randn(2, 4, 5, 7)]
    small = [F.interpolate(t, size=s.shape[-2:], mode='bilinear', align_corners=False)
             for s, t in zip(levels(), teacher, strict=True)]
    values = []
    for features in (teacher, small):
        torch.manual_seed(2)
        values.append(loss(levels(), features, samples()))
    torch.testing.assert_close(*values)


def test_vectors_are_refused(loss):
    with pytest.raises(MMKDError, match='feature maps'):
        loss.build([(4, )], [(4, )])


# CWD


def test_channel_divergence_of_two_positions_by_hand():
    # p = (3/4, 1/4) and q = (1/2, 1/2) in the first channel, the same in the second: half of the first's KL.
    teacher = torch.tensor([math.log(3.0), 0.0, 5.0, 5.0]).view(1, 2, 1, 2)
    value = channel_divergence(torch.zeros(1, 2, 1, 2), teacher)
    assert value.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rel=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_cwd_against_loops(temperature):
    torch.manual_seed(0)
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for n in range(2):
        for c in range(3):
            p = (t[n, c] / temperature).exp() / (t[n, c] / temperature).exp().sum()
            q = (s[n, c] / temperature).exp() / (s[n, c] / temperature).exp().sum()
            for i in range(4):
                for j in range(5):
                    expected[n] += temperature**2 / 3 * p[i, j] * (p[i, j] / q[i, j]).log()
    loss = CWDLoss(weight=50.0, temperature=temperature)
    torch.testing.assert_close(loss.values([s], [t])[0], expected)
    torch.testing.assert_close(loss([s], [t]), 50 * expected.mean())


def test_cwd_ignores_a_shift_of_a_channel():
    s, t = levels()[0], levels()[0].flip(0)
    torch.testing.assert_close(channel_divergence(s + torch.arange(4.0).view(4, 1, 1), t),
                               channel_divergence(s, t))


@pytest.mark.parametrize('loss_class', [CWDLoss, MGDLoss, FGDLoss])
def test_equal_channels_are_needed(loss_class):
    with pytest.raises(MMKDError, match='channels'):
        loss_class().build([(4, 2, 2)], [(8, 2, 2)])


# MGD


def test_mgd_without_masking_against_functional_convolutions():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    align = alignment(s, t)
    loss = connected(MGDLoss(mask_ratio=0.0), [align(s)], [t]).double()
    state = loss.state_dict()
    x = F.conv2d(s, align.layers[0].weight, align.layers[0].bias)
    x = F.conv2d(x, state['generation.0.0.weight'], state['generation.0.0.bias'], padding=1).relu()
    x = F.conv2d(x, state['generation.0.2.weight'], state['generation.0.2.bias'], padding=1)
    torch.testing.assert_close(loss([align(s)], [t]), 2e-5 * F.mse_loss(x, t, reduction='sum') / 2)


def test_mgd_against_loops_with_the_same_mask():
    torch.manual_seed(0)
    s, t = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64)
    loss = connected(MGDLoss(), [s], [t]).double()
    torch.manual_seed(3)
    value = loss.values([s], [t])[0]
    torch.manual_seed(3)
    draws = torch.rand(2, 1, 3, 4)
    expected = torch.zeros(2, dtype=torch.float64)
    for n in range(2):
        masked = s[n].clone()
        for i in range(3):
            for j in range(4):
                if draws[n, 0, i, j] < 0.65:
                    masked[:, i, j] = 0
        for made, wanted in zip(loss.generation[0](masked[None])[0].flatten(), t[n].flatten(), strict=True):
            expected[n] += (made - wanted)**2
    torch.testing.assert_close(value, expected)


def test_mgd_masks_its_ratio_of_positions_and_all_channels_alike():
    s = torch.ones(4, 3, 64, 64)
    loss = connected(MGDLoss(mask_ratio=0.3), [s], [s])
    inputs = []
    loss.generation[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    torch.manual_seed(0)
    loss([s], [s])
    assert (inputs[0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (inputs[0] == inputs[0][:, :1]).all()
    assert not (inputs[0][0] == inputs[0][1]).all()


def test_mgd_masks_whole_channels():
    s = torch.ones(4, 64, 5, 5)
    loss = connected(MGDLoss(mask_ratio=0.3, mask='channels'), [s], [s])
    inputs = []
    loss.generation[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    torch.manual_seed(0)
    loss([s], [s])
    assert (inputs[0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.1)
    assert (inputs[0] == inputs[0][:, :, :1, :1]).all()
    assert not (inputs[0][0] == inputs[0][1]).all()


def test_mgd_draws_once_a_level_from_torchs_generator():
    features = levels()
    loss = connected(MGDLoss(), features, features)
    torch.manual_seed(5)
    loss(features, features)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    for feature in features:
        torch.rand(2, 1, *feature.shape[-2:])
    assert torch.equal(state, torch.get_rng_state())


def test_mgd_has_separate_parts_for_every_level():
    loss = MGDLoss()
    loss.build([(4, 4, 4), (4, 2, 2)], [(4, 4, 4), (4, 2, 2)])
    assert len(loss.generation) == 2 and loss.generation[0] is not loss.generation[1]


@pytest.mark.parametrize('ratio', [-0.1, 1.1])
def test_mgd_refuses_an_invalid_ratio(ratio):
    with pytest.raises(MMKDError, match='mask_ratio'):
        MGDLoss(mask_ratio=ratio)


# FGD


def scale_by_loops(boxes, height, width, image_size):
    scale = torch.zeros(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            areas = []
            for x1, y1, x2, y2 in boxes:
                left, right = math.floor(x1 * width / image_size[1]), math.ceil(x2 * width / image_size[1])
                top, bottom = math.floor(y1 * height / image_size[0]), math.ceil(y2 * height / image_size[0])
                if top <= row <= bottom and left <= column <= right:
                    areas.append((bottom - top + 1) * (right - left + 1))
            if areas:
                scale[row, column] = 1 / min(areas)
    return scale


def test_foreground_of_one_box_by_hand():
    # At stride 8, x from 1.25 to 2.5 reaches positions 1 to 3, and y from 0 to 1 positions 0 and 1.
    scale = foreground_scale(torch.tensor([[10.0, 0.0, 20.0, 8.0]]), (3, 5), (24, 40))
    expected = torch.zeros(3, 5)
    expected[:2, 1:4] = 1 / 6
    torch.testing.assert_close(scale, expected)


def test_the_smallest_box_counts_where_boxes_overlap():
    boxes = [[0, 0, 56, 40], [16, 8, 24, 16], [20, 10, 47, 33]]
    for order in (boxes, boxes[::-1]):
        scale = foreground_scale(torch.tensor(order, dtype=torch.float64), (6, 8), (48, 64))
        torch.testing.assert_close(scale, scale_by_loops(boxes, 6, 8, (48, 64)))
    assert scale[1, 2] == 1 / 4 and scale[0, 0] == 1 / 48


def test_random_boxes_against_loops():
    torch.manual_seed(0)
    corners = 100 * torch.rand(30, 2, 2, dtype=torch.float64) - 20
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    scale = foreground_scale(boxes, (7, 11), (60, 85))
    torch.testing.assert_close(scale, scale_by_loops(boxes.tolist(), 7, 11, (60, 85)))


def test_boxes_outside_of_the_image_and_without_area():
    outside = torch.tensor([[-90.0, -90, -20, -20], [200, 3, 240, 20], [0, 100, 9, 120]])
    assert (foreground_scale(outside, (6, 8), (48, 64)) == 0).all()
    partly = torch.tensor([[-16.0, 8, 8, 16]])  # Four positions wide and two high, half of them inside.
    expected = torch.zeros(6, 8)
    expected[1:3, :2] = 1 / 8
    torch.testing.assert_close(foreground_scale(partly, (6, 8), (48, 64)), expected)
    inside_out = torch.tensor([[24.0, 16, 16, 8], [40, 16, 8, 24], [0, 0, 0, 0]])
    scale = foreground_scale(inside_out, (6, 8), (48, 64))
    assert torch.isfinite(scale).all() and scale[0, 0] == 1


def test_attention_by_loops_has_mean_one():
    torch.manual_seed(0)
    feature = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    spatial, channels = attention_maps(feature, 0.5)
    for n in range(2):
        for_position = [math.exp(feature[n, :, i, j].abs().mean() / 0.5) for i in range(4) for j in range(5)]
        for_channel = [math.exp(feature[n, c].abs().mean() / 0.5) for c in range(3)]
        assert spatial[n].flatten().tolist() == pytest.approx(
            [20 * a / sum(for_position) for a in for_position])
        assert channels[n].tolist() == pytest.approx([3 * a / sum(for_channel) for a in for_channel])
    torch.testing.assert_close(spatial.mean((1, 2)), torch.ones(2, dtype=torch.float64))


def context_by_loops(block, feature):
    logits = [(block.mask.weight.flatten() @ position).exp() for position in feature.flatten(1).T]
    context = sum(a / sum(logits) * position
                  for a, position in zip(logits, feature.flatten(1).T, strict=True))
    first, norm, _, last = block.transform
    hidden = first.weight @ context + first.bias
    hidden = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + norm.eps).sqrt()
    hidden = (hidden * norm.weight + norm.bias).clamp(min=0)
    return feature + (last.weight @ hidden + last.bias)[:, None, None]


def test_context_starts_as_the_identity():
    feature = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(GlobalContext(4)(feature), feature)


def test_context_against_loops():
    torch.manual_seed(0)
    block, feature = shaken(GlobalContext(4)).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    expected = torch.stack([context_by_loops(block, one) for one in feature])
    torch.testing.assert_close(block(feature), expected)


def test_fgd_against_loops_term_by_term():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 6, 8, dtype=torch.float64), torch.randn(2, 4, 6, 8, dtype=torch.float64)
    align = shaken(alignment(s, t))
    loss = shaken(connected(FGDLoss(), [align(s)], [t])).double()
    weights = dict(foreground=1e-3, background=5e-4, attention=5e-4, global_=5e-6)
    assert {name: getattr(loss, name) for name in weights} == weights
    conv = align.layers[0]
    aligned = torch.einsum('oc,nchw->nohw', conv.weight[:, :, 0, 0], s) + conv.bias[:, None, None]
    (a_spatial, a_channels), (b_spatial, b_channels) = attention_maps(aligned, 0.5), attention_maps(t, 0.5)
    terms = {name: torch.zeros(2, dtype=torch.float64) for name in weights}
    for n in range(2):
        scale = scale_by_loops(BOXES[n], 6, 8, (48, 64))
        empty = int((scale == 0).sum())
        assert 0 < empty < 48
        for c in range(4):
            terms['attention'][n] += (a_channels[n, c] - b_channels[n, c]).abs()
            for i in range(6):
                for j in range(8):
                    error = (t[n, c, i, j] - aligned[n, c, i, j])**2 * b_spatial[n, i, j] * b_channels[n, c]
                    if scale[i, j] > 0:
                        terms['foreground'][n] += error * scale[i, j]
                    else:
                        terms['background'][n] += error / empty
        terms['attention'][n] += (a_spatial[n] - b_spatial[n]).abs().sum()
        difference = (context_by_loops(loss.teacher_context[0], t[n])
                      - context_by_loops(loss.student_context[0], aligned[n]))
        terms['global_'][n] = sum(d**2 for d in difference.flatten())
    expected = sum(weight * terms[name] for name, weight in weights.items())
    torch.testing.assert_close(loss.values([align(s)], [t], samples())[0], expected, rtol=1e-6, atol=0)
    for name in weights:
        for other in weights:
            setattr(loss, other, float(other == name))
        torch.testing.assert_close(loss.values([align(s)], [t], samples())[0], terms[name], rtol=1e-6, atol=0)


def test_an_image_without_boxes_is_all_background():
    s, t = levels()[0].requires_grad_(), levels()[0].flip(0)
    loss = connected(FGDLoss(foreground=1.0, background=0.0, attention=0.0, global_=0.0), [s], [t])
    value = loss.values([s], [t], [sample([]), sample(BOXES[1])])[0]
    assert value[0] == 0 and value[1] > 0
    loss.foreground, loss.background = 0.0, 1.0
    value = loss.values([s], [t], [sample([]), sample(BOXES[1])])[0]
    spatial, channels = attention_maps(t, 0.5)
    expected = ((t - s).square() * spatial[:, None] * channels[:, :, None, None])[0].sum() / 48
    torch.testing.assert_close(value[0], expected)
    value.sum().backward()
    assert torch.isfinite(s.grad).all()


def test_a_box_that_covers_all_leaves_no_background():
    s, t = levels()[0], levels()[0].flip(0)
    loss = connected(FGDLoss(foreground=0.0, background=1.0, attention=0.0, global_=0.0), [s], [t])
    value = loss.values([s], [t], [sample([[0, 0, 64, 48]]), sample([])])[0]
    assert value[0] == 0 and value[1] > 0


def test_padding_moves_no_box():
    # Errors only at the positions that the box covers; the second half of the map is padding.
    t = torch.ones(1, 4, 6, 8)
    s = t.clone()
    s[:, :, 1:4, 2:4] += 1
    only = dict(attention=0.0, global_=0.0)
    loss = connected(FGDLoss(foreground=0.0, background=1.0, **only), [s], [t])
    padded = [sample([[16, 8, 24, 24]], shape=(28, 32))]
    assert loss([s], [t], padded) == 0
    loss = connected(FGDLoss(foreground=1.0, background=0.0, **only), [s], [t])
    torch.testing.assert_close(loss([s], [t], padded), torch.tensor(4.0))


def test_boxes_may_be_mmdets_box_type():
    typed = samples()
    for one in typed:
        one.gt_instances.bboxes = HorizontalBoxes(one.gt_instances.bboxes)
    s, t = levels()[0], levels()[0].flip(0)
    loss = connected(FGDLoss(), [s], [t])
    assert loss([s], [t], typed) == loss([s], [t], samples())


@pytest.mark.parametrize('invalid', [None, [DetDataSample(), DetDataSample()]])
def test_fgd_says_what_it_needs(invalid):
    loss = connected(FGDLoss(), levels(), levels())
    with pytest.raises(MMKDError, match='ground-truth boxes'):
        loss(levels(), levels(), invalid)
