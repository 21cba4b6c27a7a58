import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import distributed as torch_dist
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.losses.crd import CRDLoss, contrast_nce, sample_outside
from mmkd.registry import MODELS
from tests.helpers.two_processes import run_in_two_processes

LABELS = [2, 0, 1, 0, 2, 0, 0, 1, 2, 0]


def connected(shape=(6, ), **options) -> CRDLoss:
    torch.manual_seed(0)
    loss = CRDLoss(**{'dim': 4, 'negatives': 7, **options})
    loss.build([shape], [(5, )])
    loss.set_train_labels(LABELS)
    return loss


def batch(size=3, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(size, c, generator=generator).to(dtype) for c in (6, 5))
    return [student], [teacher], at(range(size))


def at(indices) -> list:
    return [SimpleNamespace(sample_idx=index) for index in indices]


def test_against_torchdistills_crd_loss():
    """Losses, gradients, both memories and the normalizers, over three batches that share samples."""
    oracle = pytest.importorskip('torchdistill.losses.mid_level').CRDLoss(
        'student', 'aux', 'teacher', input_size=4, output_size=10, num_negative_samples=7, num_samples=10)
    oracle = oracle.double()
    loss = connected().double()
    loss.embeddings = nn.ModuleList([nn.Identity(), nn.Identity()])
    oracle.memory_v1.copy_(loss.memory[0])
    oracle.memory_v2.copy_(loss.memory[1])
    for indices in ([1, 4, 7], [2, 4, 9], [1, 3, 2]):
        s, t = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_().unbind()
        negatives = torch.randint(10, (3, 7))
        loss.draw_negatives = lambda _, negatives=negatives: negatives
        positives = torch.tensor(indices)
        extra = dict(pos_idx=positives, contrast_idx=torch.cat([positives[:, None], negatives], 1))
        expected = oracle(dict(student=dict(output=F.normalize(s)), aux=dict(input=extra)),
                          dict(teacher=dict(output=F.normalize(t))))
        (value, ) = loss.values([s], [t], at(indices))
        assert value.shape == (3, )
        torch.testing.assert_close(value.mean(), expected[0], rtol=1e-5, atol=0)
        for one in (s, t):
            gradients = (torch.autograd.grad(result, one, retain_graph=True)[0]
                         for result in (value.mean(), expected[0]))
            torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(loss.memory, torch.stack([oracle.memory_v1, oracle.memory_v2]))
        torch.testing.assert_close(loss.normalizers, oracle.params[2:4].detach().double(), rtol=1e-5, atol=0)


def test_nce_against_a_loop():
    density = torch.rand(3, 6, dtype=torch.float64)
    noise = 5 / 40
    expected = [-math.log(row[0] / (row[0] + noise + 1e-7))
                - sum(math.log(noise / (p + noise + 1e-7)) for p in row[1:]) for row in density.tolist()]
    torch.testing.assert_close(contrast_nce(density, 40), torch.tensor(expected, dtype=torch.float64))


def test_nce_by_hand():
    # K/M = 1: log D1 = log(1/2), and log D0 = log(1/4).
    assert contrast_nce(torch.tensor([[1.0, 3.0]]), 1, eps=0).item() == pytest.approx(math.log(8))


def test_drawn_numbers_are_uniform_outside_the_block():
    drawn = sample_outside(torch.tensor([0, 3, 8]), torch.tensor([2, 4, 2]), 10, 80000,
                           torch.Generator().manual_seed(0))
    for row, outside in zip(drawn, (range(2, 10), [0, 1, 2, 7, 8, 9], range(8)), strict=True):
        counts = row.bincount(minlength=10) / 80000
        expected = torch.zeros(10)
        expected[list(outside)] = 1 / len(outside)
        torch.testing.assert_close(counts, expected, rtol=0, atol=0.006)
        assert not counts[expected == 0].any()


@pytest.mark.parametrize('mode', ['exact', 'any'])
def test_negatives(mode):
    loss = connected(mode=mode, negatives=200)
    for index, row in enumerate(loss.draw_negatives(torch.arange(10))):
        others = {other for other in range(10) if other != index
                  and (mode == 'any' or LABELS[other] != LABELS[index])}
        assert set(row.tolist()) == others


def test_negatives_from_a_generator():
    loss = connected()
    indices = torch.arange(3)
    one, two = (loss.draw_negatives(indices, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)


def test_only_chosen_samples_update_the_memory():
    loss, expected = connected(), connected()
    expected.load_state_dict(loss.state_dict())
    student, teacher, _ = batch(4)
    samples, choice = at([3, 5, 3, 7]), torch.tensor([1.0, 0, 0, 1])
    loss.masked(student, teacher, [choice], samples)
    expected.values([student[0][[0, 3]]], [teacher[0][[0, 3]]], at([3, 7]))
    torch.testing.assert_close(loss.memory, expected.memory)
    before = loss.memory.clone()
    assert loss.masked(student, teacher, [torch.zeros(4)], samples) == 0
    assert torch.equal(loss.memory, before)


def test_memory_starts_uniform_and_leaves_the_random_state_alone():
    loss = CRDLoss(dim=12)
    state = torch.get_rng_state()
    loss.set_train_labels([0, 1] * 500)
    assert torch.equal(state, torch.get_rng_state())
    assert loss.memory.shape == (2, 1000, 12)
    assert loss.memory.abs().max() <= 0.5 and loss.memory.abs().mean() == pytest.approx(0.25, rel=0.05)
    assert not torch.equal(*loss.memory)


def test_only_training_changes_the_state():
    loss = connected().eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss(*batch())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    loss.train()(*batch())
    assert (loss.normalizers > 0).all()
    changed = (loss.memory != before['memory']).any(dim=2)
    assert changed.tolist() == [[True] * 3 + [False] * 7] * 2
    torch.testing.assert_close(loss.memory[:, :3].norm(dim=2), torch.ones(2, 3))
    first = loss.normalizers.clone()
    loss(*batch(seed=2))
    assert torch.equal(loss.normalizers, first)


def test_last_of_equal_samples_is_remembered():
    loss = connected()
    student, teacher, _ = batch()
    loss(student, teacher, at([4, 6, 4]))
    expected = connected()
    expected([student[0][1:]], [teacher[0][1:]], at([6, 4]))
    torch.testing.assert_close(loss.memory, expected.memory)


@pytest.mark.parametrize('known', [None, 10])
def test_resuming_is_exact(known):
    loss = connected()
    loss(*batch())
    resumed = connected(num_samples=known)
    resumed.load_state_dict(loss.state_dict())
    resumed.set_train_labels(LABELS)  # once more: what was loaded stays
    results = []
    for one in (loss, resumed):
        torch.manual_seed(3)
        results.append((one(*batch(seed=2)), one.memory, one.normalizers))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_learns_towards_the_teacher():
    loss = connected().eval()
    (student, ), (teacher, ), samples = batch()
    student.requires_grad_()
    learned = [student, *loss.parameters()]

    def value():
        torch.manual_seed(4)
        return loss([student], [teacher], samples)

    before = value()
    gradients = torch.autograd.grad(before, learned)
    assert all(one.any() for one in gradients) and not teacher.requires_grad
    with torch.no_grad():
        for one, gradient in zip(learned, gradients, strict=True):
            one -= 0.02 * gradient
    assert value() < before


def test_gradients_of_two_forwards():
    loss = connected()
    (loss(*batch()) + loss(*batch(seed=2))).backward()
    assert all(parameter.grad.any() for parameter in loss.parameters())


def test_maps_are_averaged():
    loss = connected((6, 4, 4)).eval()
    (student, ), teacher, samples = batch()
    offset = torch.tensor([-1.0, 1.0])[None, None, None].expand(3, 6, 4, 2)
    torch.manual_seed(4)
    expected = loss([student], teacher, samples)
    torch.manual_seed(4)
    torch.testing.assert_close(loss([student[..., None, None] + offset], teacher, samples), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(dtype):
    values = []
    for autocast in (False, True):
        loss = connected()
        student, teacher, samples = batch(dtype=dtype)
        torch.manual_seed(4)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            values.append(loss(student, teacher, samples))
        assert loss.memory.dtype == torch.float32
    student, teacher, samples = batch(dtype=dtype)
    loss = connected()
    torch.manual_seed(4)
    values.append(loss([student[0].float()], [teacher[0].float()], samples))
    assert values[0].dtype == torch.float32
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize('zero', [True, False])
def test_batch_of_one(zero):
    loss = connected()
    (student, ), teacher, samples = batch(1)
    if zero:
        student = student * 0
        nn.init.zeros_(loss.embeddings[0].bias)
    value = loss([student.requires_grad_()], teacher, samples)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all() and torch.isfinite(loss.memory).all()


@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('bad', [float('inf'), float('nan')])
def test_features_that_overflowed_are_forgotten(first, bad):
    """Under AMP such a step is skipped; nothing of it may stay in the memory or in Z."""
    loss = connected(mode='any', negatives=40)
    if not first:
        loss(*batch())
    memory, normalizers = loss.memory.clone(), loss.normalizers.clone()
    (student, ), teacher, samples = batch()
    student[1, 2] = bad
    assert not loss([student], teacher, samples).isfinite()
    assert torch.equal(loss.memory[0, 1], memory[0, 1])
    assert (loss.memory != memory).any(dim=2)[:, :3].tolist() == [[True, False, True], [True] * 3]
    assert loss.memory.isfinite().all()
    assert first or torch.equal(loss.normalizers, normalizers)
    assert loss(*batch(seed=2)).isfinite()
    assert (loss.normalizers > 0).all() and loss.normalizers.isfinite().all()


def test_relaxed_negatives_need_no_labels():
    loss = CRDLoss(dim=4, negatives=7, mode='any', num_samples=10)
    loss.build([(6, )], [(5, )])
    assert torch.isfinite(loss(*batch()))


def test_pretrains_samples():
    structures = pytest.importorskip('mmpretrain.structures')
    samples = [structures.DataSample(metainfo=dict(sample_idx=i)).set_gt_label(LABELS[i]) for i in range(3)]
    student, teacher, _ = batch()
    assert torch.isfinite(connected()(student, teacher, samples))


@pytest.mark.parametrize(('samples', 'message'), [
    (None, 'needs the `sample_idx` of every sample'),
    ([SimpleNamespace()] * 3, 'needs the `sample_idx` of every sample'),
    (at([0, 1, 10]), 'a `sample_idx` is 10, but the training set has 10 samples'),
])
def test_samples_without_a_place(samples, message):
    student, teacher, _ = batch()
    with pytest.raises(MMKDError, match=message):
        connected()(student, teacher, samples)


def test_mistakes():
    loss = CRDLoss()
    with pytest.raises(MMKDError, match='one level of each network, not 2 and 1'):
        loss.build([(6, 4, 4), (6, )], [(5, )])
    with pytest.raises(MMKDError, match='all samples of the training set are of one class'):
        loss.set_train_labels([3] * 10)
    with pytest.raises(MMKDError, match='one class per sample'):
        loss.set_train_labels([[0, 1], [1, 1]])
    with pytest.raises(MMKDError, match='a memory for 7 samples, but the training set has 10'):
        CRDLoss(num_samples=7).set_train_labels(LABELS)
    with pytest.raises(MMKDError, match="`mode` of CRDLoss must be 'exact' or 'any', not 'hard'"):
        CRDLoss(mode='hard')
    exact = CRDLoss(num_samples=10)
    exact.build([(6, )], [(5, )])
    with pytest.raises(MMKDError, match='call `set_train_labels` with its labels'):
        exact(*batch())


def test_registered():
    assert MODELS.build(dict(type='mmkd.CRDLoss', weight=0.8)).weight == 0.8


def worker(rank: int) -> None:
    torch.manual_seed(rank)
    loss = CRDLoss(dim=4, negatives=7)
    loss.build([(6, )], [(5, )])
    loss.set_train_labels(LABELS)
    loss.embeddings.load_state_dict(connected().embeddings.state_dict())
    together = connected()
    together.memory = loss.memory.clone()
    for step in range(2):
        parts = [batch(seed=10 * step + other)[:2] for other in range(2)]
        indices = [[0, 3, 5], [5, 4, 0]]  # two of them in both processes
        torch.manual_seed(rank)
        loss(*parts[rank], at(indices[rank]))
        student, teacher = (torch.cat([part[network][0] for part in parts]) for network in range(2))
        together([student], [teacher], at([*indices[0], *indices[1]]))
        both = [torch.empty_like(loss.memory) for _ in range(2)]
        torch_dist.all_gather(both, loss.memory)
        assert torch.equal(*both)
        torch.testing.assert_close(loss.memory, together.memory)
        both = [torch.empty(2) for _ in range(2)]
        torch_dist.all_gather(both, loss.normalizers)
        assert torch.equal(*both)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_have_the_same_memory():
    run_in_two_processes(worker)
