import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.losses.at import ATLoss, attention
from mmkd.models.losses.fitnet import FitNetLoss, hint_error
from mmkd.models.losses.kdsvd import KDSVDLoss, _RightSingularVectors
from mmkd.models.losses.nst import NSTLoss, squared_mmd
from mmkd.models.losses.vid import VIDLoss
from mmkd.registry import MODELS

LOSSES = [FitNetLoss, ATLoss, lambda: ATLoss(form='paper'), NSTLoss, KDSVDLoss, VIDLoss]


def maps(*shapes, seed=0, batch=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64).relu().to(dtype)
            for shape in shapes]


def connected(loss, student, teacher):
    torch.manual_seed(0)
    loss.build([tuple(s.shape[1:]) for s in student], [tuple(t.shape[1:]) for t in teacher])
    return loss


# Behavior common to all

@pytest.mark.parametrize('make', LOSSES)
def test_a_step_against_the_gradient_lowers_the_loss_and_parts_are_trained(make):
    student, teacher = maps((4, 4, 4), (6, 2, 2)), maps((4, 4, 4), (6, 2, 2), seed=1)
    loss = connected(make(), student, teacher)
    for s in student:
        s.requires_grad_()
    before = loss(student, teacher)
    before.backward()
    assert before.shape == () and all(s.grad.abs().sum() > 0 for s in student)
    assert all(parameter.grad is not None for parameter in loss.parameters())
    step = 1e-3 / max(s.grad.abs().max() for s in student)
    with torch.no_grad():
        assert loss([s - step * s.grad for s in student], teacher) < before


@pytest.mark.parametrize('make', LOSSES)
def test_values_are_of_every_sample_alone(make):
    student, teacher = maps((4, 4, 4), (6, 2, 2)), maps((4, 4, 4), (6, 2, 2), seed=1)
    loss = connected(make(), student, teacher)
    together = loss.values(student, teacher)
    assert not loss.is_relational and all(value.shape == (3, ) for value in together)
    alone = loss.values([s[1:2] for s in student], [t[1:2] for t in teacher])
    for value, single in zip(together, alone, strict=True):
        torch.testing.assert_close(value[1:2], single, rtol=1e-4, atol=1e-7)
    expected = 2 * sum(value.mean() for value in together)
    loss.weight = 2.0
    torch.testing.assert_close(loss(student, teacher), expected)


@pytest.mark.parametrize('make', LOSSES)
@pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
def test_zero_features_and_a_batch_of_one_are_finite(make, zero):
    student, teacher = maps((4, 4, 4), (6, 2, 2), batch=1), maps((4, 4, 4), (6, 2, 2), seed=1, batch=1)
    student = [s * (zero == 'teacher') for s in student]
    teacher = [t * (zero == 'student') for t in teacher]
    loss = connected(make(), student, teacher)
    for s in student:
        s.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(s.grad).all() for s in student)
    assert all(torch.isfinite(parameter.grad).all() for parameter in loss.parameters())


@pytest.mark.parametrize('make', LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(make, dtype):
    student, teacher = (maps((4, 4, 4), (6, 2, 2), seed=seed, dtype=dtype) for seed in (0, 1))
    loss = connected(make(), student, teacher)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss([s.float() for s in student], [t.float() for t in teacher]))


@pytest.mark.parametrize('make', [make for make in LOSSES if make is not VIDLoss])
def test_autocast_changes_nothing(make):
    student, teacher = maps((4, 4, 4), (6, 2, 2)), maps((4, 4, 4), (6, 2, 2), seed=1)
    loss = connected(make(), student, teacher)
    expected = loss(student, teacher)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(loss(student, teacher), expected)


@pytest.mark.parametrize('make', LOSSES[1:])
def test_vectors_are_refused(make):
    with pytest.raises(MMKDError, match='feature maps'):
        make().build([(4, )] * 2, [(4, )] * 2)


def test_they_are_registered():
    for kind in (FitNetLoss, ATLoss, NSTLoss, KDSVDLoss, VIDLoss):
        assert type(MODELS.build(dict(type=f'mmkd.{kind.__name__}', weight=3.0))) is kind


# FitNet

def test_hint_by_hand_and_against_torch():
    assert hint_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.0]])).tolist() == [4.5]
    (s, v), (t, w) = maps((4, 4, 4), (6, )), maps((4, 4, 4), (6, ), seed=1)
    loss = connected(FitNetLoss(), [s, v], [t, w])
    torch.testing.assert_close(loss([s, v], [t, w]), F.mse_loss(s, t) + F.mse_loss(v, w))


def test_hint_resamples_the_teacher():
    (s, ), (t, ) = maps((4, 3, 5)), maps((4, 6, 10), seed=1)
    small = F.interpolate(t, size=(3, 5), mode='bilinear', align_corners=False)
    torch.testing.assert_close(FitNetLoss()([s], [t]), F.mse_loss(s, small))


def test_hint_refuses_what_cannot_be_compared():
    with pytest.raises(MMKDError, match='connector'):
        FitNetLoss().build([(4, 2, 2)], [(5, 2, 2)])
    with pytest.raises(MMKDError, match='vector'):
        FitNetLoss().build([(4, 2, 2)], [(4, )])


# Attention transfer

@pytest.mark.parametrize(('form', 'mode'), [('mean', 'code'), ('paper', 'paper')])
def test_at_against_torchdistill_atloss(form, mode):
    oracle = pytest.importorskip('torchdistill.losses.mid_level')
    student, teacher = maps((4, 4, 4), (6, 2, 2)), maps((8, 4, 4), (5, 2, 2), seed=1)
    pairs = {i: dict(student=dict(io='output', path=i), teacher=dict(io='output', path=i)) for i in range(2)}
    expected = oracle.ATLoss(pairs, mode=mode)(
        *({i: dict(output=f) for i, f in enumerate(features)} for features in (student, teacher)))
    torch.testing.assert_close(ATLoss(form=form)(student, teacher), expected, rtol=1e-5, atol=0)


def test_at_by_hand():
    # Two channels, two positions: means of squares (5, 0) and (0, 2), so the attention is (1, 0) and (0, 1).
    s, t = torch.tensor([[[[1.0, 0.0]], [[-3.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])
    assert attention(s).tolist() == [[1.0, 0.0]]
    assert ATLoss()([s], [t]).item() == pytest.approx(1.0)
    assert ATLoss(form='paper')([s], [t]).item() == pytest.approx(math.sqrt(2))


def test_at_takes_odd_powers_of_absolute_values():
    (s, ), (t, ) = maps((4, 3, 3)), maps((4, 3, 3), seed=1)
    torch.testing.assert_close(ATLoss(p=3)([-s], [t]), ATLoss(p=3)([s], [t]))


@pytest.mark.parametrize('make', [ATLoss, NSTLoss])
def test_the_larger_map_is_average_pooled(make):
    (s, ), (t, ) = maps((4, 4, 6)), maps((5, 2, 3), seed=1)
    expected = make()([F.avg_pool2d(s, 2)], [t])
    torch.testing.assert_close(make()([s], [t]), expected)
    torch.testing.assert_close(make()([t], [s]), expected)


def test_at_of_an_unknown_form_is_refused():
    with pytest.raises(MMKDError, match='papers'):
        ATLoss(form='papers')


def test_at_refuses_powers_without_a_gradient_at_zero():
    # |f|^p is infinitely steep there, where half of the features behind a ReLU are.
    with pytest.raises(MMKDError, match='`p` of ATLoss must be a number from 1 to 8, not 0.5'):
        ATLoss(p=0.5)
    s = torch.zeros(2, 4, 3, 3, requires_grad=True)
    ATLoss(p=1)([s], maps((4, 3, 3), batch=2)).backward()
    assert s.grad.isfinite().all()


# Neuron selectivity transfer

@pytest.mark.parametrize('channels', [(3, 4), (12, 17), (3, 17)], ids=['channels', 'positions', 'mixed'])
def test_nst_against_loops(channels):
    (s, ), (t, ) = maps((channels[0], 2, 4)), maps((channels[1], 2, 4), seed=1)

    def kernel(one, two):
        total = 0.0
        for a in one.double().flatten(1).numpy():
            for b in two.double().flatten(1).numpy():
                total += (a @ b / np.linalg.norm(a) / np.linalg.norm(b))**2
        return total / len(one) / len(two)

    expected = [kernel(a, a) + kernel(b, b) - 2 * kernel(a, b) for a, b in zip(s, t, strict=True)]
    torch.testing.assert_close(
        squared_mmd(s, t).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_nst_by_hand():
    # One channel each, 60 degrees apart: 1 + 1 - 2 cos² 60° = 1.5.
    s, t = torch.tensor([[[[5.0, 0.0]]]]), torch.tensor([[[[1.0, math.sqrt(3)]]]])
    assert squared_mmd(s, t).item() == pytest.approx(1.5)


# Variational information distillation

def test_vid_against_torchdistill_vidloss_and_regressor():
    oracle = pytest.importorskip('torchdistill.losses.mid_level')
    wrapper = pytest.importorskip('torchdistill.models.wrapper')
    student, teacher = maps((4, 4, 4), (6, 2, 2)), maps((8, 4, 4), (5, 2, 2), seed=1)
    loss = connected(VIDLoss(), student, teacher)
    pairs = {i: dict(student=dict(io='output', path=i), teacher=dict(io='output', path=i)) for i in range(2)}
    predicted = {}
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        regressor = wrapper.Regressor4VID(s.shape[1], t.shape[1], t.shape[1], eps=1e-5, init_pred_var=5.0)
        torch.testing.assert_close(loss.regressors[i].log_scale, regressor.soft_plus_param)
        regressor.regressor.load_state_dict(loss.regressors[i].mean.state_dict())
        with torch.no_grad():
            noise = torch.randn_like(regressor.soft_plus_param)
            regressor.soft_plus_param += noise
            loss.regressors[i].log_scale += noise
        predicted[i] = dict(output=regressor(s))
    expected = oracle.VIDLoss(pairs)(predicted, {i: dict(output=t) for i, t in enumerate(teacher)})
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-5, atol=0)


def test_vid_of_a_right_prediction_by_hand():
    # The mean is right and the variance 5: half its logarithm is left.
    (t, ) = maps((2, 3, 3))
    loss = connected(VIDLoss(), [t], [t])
    for layer in loss.regressors[0].mean[::2]:
        torch.nn.init.dirac_(layer.weight)
    assert loss([t], [t]).item() == pytest.approx(math.log(5) / 2, rel=1e-5)


def test_vid_pools_the_larger_map():
    (s, ), (t, ) = maps((4, 4, 6)), maps((5, 2, 3), seed=1)
    loss = connected(VIDLoss(), [s], [t])
    torch.testing.assert_close(loss([s], [t]), loss([F.avg_pool2d(s, 2)], [t]))
    torch.testing.assert_close(loss([s[..., :2, :3]], [F.interpolate(t, scale_factor=2)]),
                               loss([s[..., :2, :3]], [t]))


# Singular value decomposition

def kdsvd_by_loops(student, teacher, k):
    total = 0.0
    for sample in range(len(student[0])):
        levels = []
        for s, t in zip(student, teacher, strict=True):
            s, t = (f[sample].double().flatten(1).numpy().T for f in (s, t))
            candidates = np.linalg.svd(s)[2][:min(k + 3, *s.shape)]
            _, scale, target = np.linalg.svd(t)
            scale = scale[:k] / np.linalg.norm(scale[:k])
            pairs = []
            for j in range(k):
                aim = target[j] * (1 if target[j].sum() > 0 else -1)
                best = max(candidates, key=lambda v, aim=aim: abs(v @ aim))
                pairs.append((best * np.sign(best @ aim) * scale[j], aim * scale[j]))
            levels.append(pairs)
        for lower, higher in pairwise(levels):
            for (s, t), (above_s, above_t) in zip(lower, higher, strict=True):
                for i in range(len(s)):
                    for j in range(len(above_s)):
                        total += (math.exp(-(s[i] - above_s[j])**2 / 8)
                                  - math.exp(-(t[i] - above_t[j])**2 / 8))**2
    return total / len(student[0])


@pytest.mark.parametrize('k', [1, 2])
def test_kdsvd_against_numpy(k):
    student = maps((4, 4, 4), (6, 3, 3), (9, 2, 2))
    teacher = maps((4, 5, 6), (6, 3, 3), (9, 2, 2), seed=1)
    loss = connected(KDSVDLoss(k=k), student, teacher)
    assert len(loss.values(student, teacher)) == 2
    assert loss(student, teacher).item() == pytest.approx(kdsvd_by_loops(student, teacher, k), rel=1e-4)
    double = loss([s.double() for s in student], [t.double() for t in teacher])
    assert double.item() == pytest.approx(kdsvd_by_loops(student, teacher, k), rel=1e-10)


def test_kdsvd_of_the_teacher_itself_is_zero():
    teacher = maps((4, 4, 4), (6, 3, 3))
    assert KDSVDLoss()(teacher, teacher).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize('positions', [4, 7, 12], ids=['wide', 'square', 'tall'])
def test_gradient_of_singular_vectors_against_finite_differences(positions):
    torch.manual_seed(0)
    x = torch.randn(2, positions, 7, dtype=torch.float64, requires_grad=True)
    aim = torch.randn(2, 7, 3, dtype=torch.float64)
    # Squares do not change with the arbitrary sign.
    assert torch.autograd.gradcheck(
        lambda x: ((_RightSingularVectors.apply(x, 3) * aim).sum(1)**2).sum(), x, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('degenerate', ['equal', 'dead', 'one position', 'not finite'])
def test_kdsvd_gradient_is_finite(degenerate):
    student, teacher = maps((8, 4, 4), (8, 4, 4)), maps((8, 4, 4), (8, 4, 4), seed=1)
    if degenerate == 'equal':
        student = [torch.eye(8).repeat(3, 1, 2).unflatten(2, (4, 4)) for _ in student]
    elif degenerate == 'dead':
        student = [s * (torch.arange(8) < 2)[:, None, None] for s in student]
    elif degenerate == 'one position':
        student, teacher = [s[..., :1, :1] for s in student], [t[..., :1, :1] for t in teacher]
    else:
        student[0][0, 0, 0, 0] = math.inf
    loss = connected(KDSVDLoss(k=2), student, teacher)
    for s in student:
        s.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert torch.isfinite(value) and all(torch.isfinite(s.grad).all() for s in student)


def test_kdsvd_refuses_a_single_level_and_other_channels():
    with pytest.raises(MMKDError, match='consecutive'):
        KDSVDLoss().build([(4, 2, 2)], [(4, 2, 2)])
    with pytest.raises(MMKDError, match='connector'):
        KDSVDLoss().build([(4, 2, 2)] * 2, [(5, 2, 2)] * 2)
