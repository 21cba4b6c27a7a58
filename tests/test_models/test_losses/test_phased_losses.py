"""AB, FSP and FT, which have a first phase, and OFD, which has the same connectors as AB."""
import math

import pytest
import torch
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.connectors import ConvConnector
from mmkd.models.losses.ab import ABLoss, activation_boundary_distance
from mmkd.models.losses.fsp import FSPLoss, flow_matrix
from mmkd.models.losses.ft import FTLoss, factor_distance
from mmkd.models.losses.ofd import NegativeMean, OFDLoss, margin_from_batch_norm, partial_l2
from mmkd.models.losses.tensors import pooled_alike
from mmkd.registry import MODELS


def maps(*shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def connected(loss, student, teacher):
    torch.manual_seed(0)
    loss.build([tuple(s.shape[1:]) for s in student], [tuple(t.shape[1:]) for t in teacher])
    return loss.to(student[0].dtype if student[0].dtype.itemsize >= 4 else torch.float32)


def connectors(student, teacher):
    """The connectors in the presets of AB and OFD, in eval mode."""
    torch.manual_seed(0)
    built = []
    for s, t in zip(student, teacher, strict=True):
        connector = ConvConnector(kernel_size=1, relu=False, pool=True)
        connector.build(tuple(s.shape[1:]), tuple(t.shape[1:]))
        built.append(connector.eval())
    return built


def oracle(name):
    return getattr(pytest.importorskip('torchdistill.losses.mid_level'), name)


STUDENT = [(3, 4, 8, 8), (3, 6, 4, 4)]
TEACHER = [(3, 4, 8, 8), (3, 6, 4, 4)]
LOSSES = [ABLoss, FSPLoss, FTLoss, OFDLoss]


@pytest.mark.parametrize('loss_class', LOSSES)
def test_registered_and_built_with_defaults(loss_class):
    assert isinstance(MODELS.build(dict(type=f'mmkd.{loss_class.__name__}')), loss_class)
    assert loss_class().has_first_phase == (loss_class is not OFDLoss)


@pytest.mark.parametrize('loss_class', LOSSES)
def test_values_of_a_sample_do_not_depend_on_the_others(loss_class):
    student, teacher = maps(*STUDENT), maps(*TEACHER, seed=1)
    loss = connected(loss_class(), student, teacher).eval()
    together = sum(loss.values(student, teacher))
    alone = sum(loss.values([s[1:2] for s in student], [t[1:2] for t in teacher]))
    assert together.shape == (3, )
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize('loss_class', LOSSES)
def test_a_gradient_step_brings_the_student_nearer(loss_class):
    student = [s.requires_grad_() for s in maps(*STUDENT, dtype=torch.float64)]
    teacher = maps(*TEACHER, seed=1, dtype=torch.float64)
    loss = connected(loss_class(weight=1.0), student, teacher).eval()
    before = loss(student, teacher)
    before.backward()
    assert all(s.grad.abs().sum() > 0 for s in student)
    after = loss([s.detach() - 1e-3 * s.grad for s in student], teacher)
    assert after < before


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('loss_class', LOSSES)
def test_half_precision_input_gives_float32(loss_class, dtype):
    student, teacher = maps(*STUDENT, dtype=dtype), maps(*TEACHER, seed=1, dtype=dtype)
    loss = connected(loss_class(weight=1.0), student, teacher).eval()
    value = loss(student, teacher)
    assert value.dtype == torch.float32 and torch.isfinite(value)
    torch.testing.assert_close(value, loss([s.float() for s in student], [t.float() for t in teacher]))
    if loss.has_first_phase:
        assert loss.first_phase(student, teacher).dtype == torch.float32


def test_flow_matrix_does_not_overflow_under_autocast():
    feature = torch.full((1, 1, 20, 20), 300.0)
    with torch.autocast('cpu', torch.float16):
        assert flow_matrix(feature, feature).item() == 90000


@pytest.mark.parametrize('loss_class', LOSSES)
def test_one_sample_of_zeros_is_finite(loss_class):
    student = [torch.zeros(1, *shape[1:], requires_grad=True) for shape in STUDENT]
    teacher = [torch.zeros(1, *shape[1:]) for shape in TEACHER]
    loss = connected(loss_class(weight=1.0), student, teacher)
    value = loss(student, teacher)
    if loss.has_first_phase:
        value = value + loss.first_phase(student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(s.grad).all() for s in student)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in loss.parameters())


@pytest.mark.parametrize('loss_class', LOSSES)
def test_maps_are_needed(loss_class):
    with pytest.raises(MMKDError, match='feature maps'):
        loss_class().build([(4, ), (4, )], [(4, ), (4, )])


@pytest.mark.parametrize('loss_class', [ABLoss, FSPLoss])
def test_no_loss_after_the_first_phase_of_ab_and_fsp(loss_class):
    student = [s.requires_grad_() for s in maps(*STUDENT)]
    teacher = maps(*TEACHER, seed=1)
    loss = connected(loss_class(first_weight=2.0), student, teacher)
    assert loss(student, teacher) == 0
    loss(student, teacher).backward()
    assert all(s.grad is not None and not s.grad.any() for s in student)
    expected = 2 * sum(value.mean() for value in loss.values(student, teacher))
    torch.testing.assert_close(loss.first_phase(student, teacher), expected)


def test_larger_maps_are_pooled_to_smaller_ones_side_by_side():
    one, other = maps((1, 2, 8, 3), (1, 5, 4, 6))
    pooled, pooled_other = pooled_alike(one, other)
    torch.testing.assert_close(pooled, one.unfold(2, 2, 2).mean(-1))
    torch.testing.assert_close(pooled_other, other.unfold(3, 2, 2).mean(-1))
    assert pooled_alike(one, one)[0] is one


# AB

def test_activation_boundaries_by_hand():
    # Active teacher: a student at 2 costs 0, at -1 (1 + 1)^2; inactive: at 0.5 (1 + 0.5)^2, at -1 0.
    teacher = torch.tensor([[5.0, 0.1, 0.0, -3.0]]).view(1, 4, 1, 1)
    student = torch.tensor([[2.0, -1.0, 0.5, -1.0]]).view(1, 4, 1, 1)
    assert activation_boundary_distance(student, teacher).tolist() == [4 + 2.25]
    # A wider margin: (3 - 2)^2, (3 + 1)^2, (3 + 0.5)^2 and (3 - 1)^2.
    assert activation_boundary_distance(student, teacher, margin=3.0).tolist() == [1 + 16 + 12.25 + 4]


@pytest.mark.parametrize('margin', [1.0, 0.3])
def test_ab_against_torchdistill_alt_act_transfer_loss(margin):
    student, teacher = maps((5, 4, 6, 6), (5, 4, 6, 6))
    pair = {name: dict(io='output', path='x') for name in ('student', 'teacher')}
    expected = oracle('AltActTransferLoss')(dict(pair=pair), margin, 'mean')(
        {'x': {'output': student}}, {'x': {'output': teacher}})
    value = activation_boundary_distance(student, teacher, margin).mean()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


def test_ab_connects_every_level_and_halves_towards_the_first():
    student = maps((2, 3, 8, 8), (2, 5, 4, 4), (2, 7, 4, 4))
    teacher = maps((2, 4, 4, 4), (2, 6, 4, 4), (2, 8, 8, 8), seed=1)
    convs = connectors(student, teacher)
    outputs = [conv(s) for conv, s in zip(convs, student, strict=True)]
    values = connected(ABLoss(), outputs, teacher).values(outputs, teacher)
    plain = connected(ABLoss(level_weights=(1, 1, 1)), outputs, teacher).values(outputs, teacher)
    torch.testing.assert_close(torch.stack(values), torch.stack(plain) * torch.tensor([[0.25], [0.5], [1.0]]))
    first, last = convs[0].layers[-2:], convs[2].layers  # behind the pooling of the connector
    torch.testing.assert_close(
        plain[0], activation_boundary_distance(first(F.avg_pool2d(student[0], 2)), teacher[0]))
    torch.testing.assert_close(
        plain[2], activation_boundary_distance(last(student[2]), F.avg_pool2d(teacher[2], 2)))


# FSP

def test_flow_matrix_by_hand():
    first = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]])
    second = torch.tensor([[[[3.0, 1.0]]]])
    assert flow_matrix(first, second).tolist() == [[[(3 + 2) / 2], [4 / 2]]]


@pytest.mark.parametrize('shapes', [[(2, 4, 8, 6), (2, 5, 4, 3)], [(2, 4, 4, 4), (2, 5, 8, 8)]])
def test_flow_matrix_against_torchdistill_fsp_loss(shapes):
    features = maps(*shapes)
    expected = oracle('FSPLoss').compute_fsp_matrix(*features)
    torch.testing.assert_close(flow_matrix(*features, max_pool=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('max_pool', [False, True])
def test_fsp_against_loops(max_pool):
    student = maps((2, 2, 4, 4), (2, 3, 2, 2), (2, 2, 2, 2), dtype=torch.float64)
    teacher = maps((2, 2, 4, 4), (2, 3, 2, 2), (2, 2, 2, 2), seed=1, dtype=torch.float64)
    pool = F.max_pool2d if max_pool else F.avg_pool2d
    expected = 0
    for low, high in ((0, 1), (1, 2)):
        c1, c2 = student[low].shape[1], student[high].shape[1]
        for n in range(2):
            for i in range(c1):
                for j in range(c2):
                    entry = []
                    for features in (student, teacher):
                        first = pool(features[low], 2) if low == 0 else features[low]
                        entry.append(sum(first[n, i, y, x] * features[high][n, j, y, x]
                                         for y in range(2) for x in range(2)) / 4)
                    expected += (entry[0] - entry[1])**2 / (2 * c1 * c2)
    loss = FSPLoss(first_weight=50.0, max_pool=max_pool)
    torch.testing.assert_close(loss.first_phase(student, teacher), 50 * expected)


@pytest.mark.parametrize('loss_class', [ABLoss, OFDLoss])
def test_ab_and_ofd_need_the_same_channels(loss_class):
    with pytest.raises(MMKDError, match='channels'):
        loss_class().build([(4, 8, 8)], [(8, 8, 8)])


def test_fsp_needs_the_same_channels_and_two_levels():
    with pytest.raises(MMKDError, match='channels'):
        FSPLoss().build([(4, 8, 8), (8, 4, 4)], [(4, 8, 8), (16, 4, 4)])
    with pytest.raises(MMKDError, match='two levels'):
        FSPLoss().build([(4, 8, 8)], [(4, 8, 8)])


# FT

@pytest.mark.parametrize('p', [1, 2])
def test_whole_factors_against_torchdistill_ft_loss(p):
    student, teacher = maps((5, 4, 6, 6), (5, 4, 6, 6))
    expected = oracle('FTLoss')(p=p)(
        {'translator': {'output': student}}, {'paraphraser': {'output': teacher}})
    value = factor_distance(student, teacher, p, collapse=False)
    assert value.shape == (5, )
    torch.testing.assert_close(value.mean(), expected, rtol=1e-5, atol=0)


def test_collapsed_factors_by_hand():
    # Mean squares over channels: (3, 4) and (1, 0), of norms 5 and 1.
    student = torch.tensor([[[[math.sqrt(6.0), 0.0]], [[0.0, math.sqrt(8.0)]]]])
    teacher = torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]])
    assert factor_distance(student, teacher).item() == pytest.approx((0.4 + 0.8) / 2)
    assert factor_distance(student, teacher, p=2).item() == pytest.approx(math.sqrt(0.4**2 + 0.8**2))


@pytest.mark.parametrize('collapse', [True, False])
def test_factors_of_zeros_have_no_gradient(collapse):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    factor_distance(student, maps((2, 3, 4, 4))[0], collapse=collapse).sum().backward()
    assert not student.grad.any()


def test_factors_of_different_sizes_are_average_pooled():
    student, teacher = maps((2, 3, 8, 8), (2, 3, 4, 4))
    expected = factor_distance(F.avg_pool2d(student, 2), teacher)
    torch.testing.assert_close(factor_distance(student, teacher), expected)


@pytest.mark.parametrize('use_bn', [False, True])
def test_ft_first_phase_trains_the_paraphraser_alone(use_bn):
    student, teacher = maps(*STUDENT), maps(*TEACHER, seed=1)
    loss = connected(FTLoss(use_bn=use_bn), student, teacher)
    encoder, decoder = loss.encoders[1], loss.decoders[1]
    rebuilt = decoder(encoder(teacher[1]))
    assert encoder(teacher[1]).shape == (3, 3, 4, 4) and rebuilt.shape == teacher[1].shape
    optimizer = torch.optim.SGD(loss.parameters(), 0.05)
    history = []
    for _ in range(5):
        optimizer.zero_grad()
        value = loss.first_phase(student, teacher)
        value.backward()
        optimizer.step()
        history.append(value.item())
    assert history[0] > history[-1]
    assert all(p.grad is None for p in loss.translators.parameters())
    assert all(p.grad is not None for module in (loss.encoders, loss.decoders) for p in module.parameters())


def test_ft_second_phase_leaves_the_paraphraser_as_it_is():
    student = [s.requires_grad_() for s in maps(*STUDENT)]
    teacher = maps(*TEACHER, seed=1)
    loss = connected(FTLoss(use_bn=True), student, teacher)
    loss.first_phase(student, teacher)
    before = {name: value.clone() for name, value in loss.encoders.state_dict().items()}
    loss.train()
    loss(student, teacher).backward()
    assert all(torch.equal(before[name], value) for name, value in loss.encoders.state_dict().items())
    assert all(p.grad is None for module in (loss.encoders, loss.decoders) for p in module.parameters())
    assert all(p.grad is not None for p in loss.translators.parameters())
    loss.first_phase(student, teacher)
    assert loss.encoders.state_dict()['0.1.num_batches_tracked'] == before['0.1.num_batches_tracked'] + 1


@pytest.mark.parametrize('use_bn', [False, True])
def test_ft_without_a_first_phase_never_changes_the_paraphraser(use_bn):
    student, teacher = maps(*STUDENT), maps(*TEACHER, seed=1)
    loss = connected(FTLoss(use_bn=use_bn), student, teacher)
    loss.end_first_phase()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    optimizer = torch.optim.Adam(loss.parameters(), 0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        # What is trained must be reached in every step, for DDP.
        unreached = sum(parameter.sum() * 0 for parameter in loss.parameters() if parameter.requires_grad)
        (loss(student, teacher) + unreached).backward()
        optimizer.step()
    changed = {name.split('.')[0] for name, value in loss.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == {'translators'}


# OFD

@pytest.mark.parametrize(('weight', 'bias'), [(1.0, 0.0), (0.5, 0.8), (-2.0, 1.0), (1.5, -4.0)])
def test_margin_from_batch_norm_against_integration(weight, bias):
    x = torch.linspace(-40, 0, 400_001, dtype=torch.float64)
    density = torch.exp(-((x - bias) / weight)**2 / 2)
    expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
    margin = margin_from_batch_norm(torch.tensor([weight]), torch.tensor([bias]))
    assert margin.dtype == torch.float32
    assert margin.item() == pytest.approx(expected.item(), rel=1e-5)


def test_margin_from_batch_norm_against_samples():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.tensor([0.7, -1.3, 2.0]), torch.tensor([0.4, -0.6, 0.0])
    x = torch.randn(400_000, 3, generator=generator) * weight + bias
    expected = x.clamp(max=0).sum(0) / (x < 0).sum(0)
    torch.testing.assert_close(margin_from_batch_norm(weight, bias), expected, rtol=1e-2, atol=0)


def test_margins_of_rarely_negative_and_constant_channels():
    # Far in the tail the mean of the negative outputs tends to -γ²/β; constants have the mean they have.
    margin = margin_from_batch_norm(torch.tensor([0.1, 0.0, 0.0, 0.0]), torch.tensor([5.0, 2.0, 0.0, -3.0]))
    torch.testing.assert_close(margin, torch.tensor([-0.002, 0.0, 0.0, -3.0]), rtol=1e-3, atol=1e-6)


def test_partial_l2_against_loops():
    student, teacher = maps((2, 3, 4, 5), (2, 3, 4, 5), dtype=torch.float64)
    margin = torch.tensor([-0.2, -0.5, 0.0], dtype=torch.float64)
    expected = []
    for n in range(2):
        total = 0
        for c in range(3):
            for s, t in zip(student[n, c].flatten().tolist(), teacher[n, c].flatten().tolist(), strict=True):
                target = t if t > margin[c].item() else margin[c].item()
                total += 0 if s <= target <= 0 else (s - target)**2
        expected.append(total)
    value = partial_l2(student, teacher, margin)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_negative_mean_averages_batches_and_skips_channels_without_negatives():
    tracker = NegativeMean(2)
    for first, second in [((-1.0, 3.0), (1.0, 2.0)), ((-2.0, -4.0), (-6.0, 1.0)), ((1.0, 1.0), (-2.0, 0.0))]:
        tracker.update(torch.tensor([[[first], [second]]]))
    assert tracker.mean.tolist() == [pytest.approx((-1 - 3) / 2), pytest.approx((-6 - 2) / 2)]


def test_ofd_measures_margins_in_training_only_and_keeps_given_ones():
    student, teacher = maps(*STUDENT), maps(*TEACHER, seed=1)
    loss = connected(OFDLoss(), student, teacher)
    loss.set_margins(1, torch.ones(6), torch.zeros(6))
    loss.eval()(student, teacher)
    assert not loss.margins[0].mean.any()
    loss.train()(student, teacher)
    negative = [teacher[0][:, c][teacher[0][:, c] < 0].mean() for c in range(4)]
    torch.testing.assert_close(loss.margins[0].mean, torch.stack(negative))
    torch.testing.assert_close(loss.margins[1].mean, torch.full((6, ), -math.sqrt(2 / math.pi)))
    again = connected(OFDLoss(), student, teacher)
    again.load_state_dict(loss.state_dict())
    again.train()(student, maps(*TEACHER, seed=2))
    torch.testing.assert_close(again.margins[1].mean, loss.margins[1].mean)


@pytest.mark.parametrize('bad', [-math.inf, math.nan])
def test_ofd_forgets_what_overflowed(bad):
    tracker, expected = NegativeMean(2), NegativeMean(2)
    (good, ) = maps((3, 2, 4, 4))
    for first in (True, False):
        overflowed = good.clone()
        overflowed[0, 1, 2, 2] = bad
        tracker.update(overflowed)
        assert tracker.mean.isfinite().all() and (first or torch.equal(tracker.mean[1], expected.mean[1]))
        tracker.update(good)
        expected.update(good)
    torch.testing.assert_close(tracker.mean, expected.mean)


def test_ofd_halves_towards_the_first_level_and_pools():
    student, teacher = maps((2, 3, 8, 8), (2, 5, 4, 4)), maps((2, 4, 4, 4), (2, 6, 8, 8), seed=1)
    convs = connectors(student, teacher)
    outputs = [conv(s) for conv, s in zip(convs, student, strict=True)]
    loss = connected(OFDLoss(weight=0.1), outputs, teacher).eval()
    s = [convs[0].layers[-2:](F.avg_pool2d(student[0], 2)), convs[1].layers(student[1])]
    t = [teacher[0], F.avg_pool2d(teacher[1], 2)]
    levels = [partial_l2(one, two, torch.zeros(one.shape[1])).mean() for one, two in zip(s, t, strict=True)]
    torch.testing.assert_close(loss(outputs, teacher), 0.1 * (levels[0] / 2 + levels[1]))
