import pytest
import torch
import torch.nn.functional as F

from mmkd.errors import MMKDError
from mmkd.models.losses.reviewkd import ReviewKDLoss, hierarchical_context_loss
from mmkd.registry import MODELS

STUDENT = [(4, 8, 8), (6, 4, 4), (8, 2, 2), (8, )]
TEACHER = [(5, 8, 8), (7, 4, 4), (9, 2, 2), (9, )]


def connected(student=STUDENT, teacher=TEACHER, **options) -> ReviewKDLoss:
    torch.manual_seed(0)
    loss = ReviewKDLoss(**{'mid_channels': 3, **options})
    loss.build(student, teacher)
    return loss


def features(shapes, batch=2, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 8, 11])
def test_hcl_against_torchdistills_hierarchical_context_loss(size):
    oracle = pytest.importorskip('torchdistill.losses.mid_level').HierarchicalContextLoss('s', 'o', 't', 'o')
    s, t = torch.randn(2, 3, 4, size, size, dtype=torch.float64)
    value = hierarchical_context_loss(s, t)
    assert value.shape == (3, )
    expected = oracle({'s': {'o': (s, None)}}, {'t': {'o': t}})
    torch.testing.assert_close(value.mean(), expected, rtol=1e-9, atol=0)


def test_hcl_by_hand():
    # Differences 0, 2, 4, 2 (mean square 6) and their mean 2 (square 4), with weights 1 and 1/2.
    student = torch.tensor([[[[0.0, 2.0], [4.0, 2.0]]]])
    assert hierarchical_context_loss(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(8 / 1.5)


def test_hcl_of_a_flat_map_leaves_out_sizes_above_its_height():
    s, t = torch.randn(2, 1, 2, 3, 9)
    torch.testing.assert_close(hierarchical_context_loss(s, t), hierarchical_context_loss(s, t, (2, 1)))


def fused_by_hand(loss: ReviewKDLoss, student, sizes):
    """The paper's figure 3, in functions, with the running statistics of batch norm."""
    outputs, deeper = [], None
    for fusion, x, size in reversed(list(zip(loss.fusions, student, sizes, strict=True))):
        x = x.reshape(*x.shape[:2], *(x.shape[2:] or (1, 1)))
        norm = fusion.reduce_norm
        x = F.conv2d(x, fusion.reduce.weight)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
        if deeper is not None:
            rows = torch.arange(x.shape[2]) * deeper.shape[2] // x.shape[2]
            columns = torch.arange(x.shape[3]) * deeper.shape[3] // x.shape[3]
            y = deeper[:, :, rows][:, :, :, columns]
            z = F.conv2d(torch.cat([x, y], 1), fusion.attention.weight, fusion.attention.bias)
            z = 1 / (1 + (-z).exp())
            x = torch.einsum('nchw,nhw->nchw', x, z[:, 0]) + torch.einsum('nchw,nhw->nchw', y, z[:, 1])
        rows, columns = (torch.arange(size[i]) * x.shape[2 + i] // size[i] for i in range(2))
        deeper = x[:, :, rows][:, :, :, columns]
        norm = fusion.expand_norm
        x = F.conv2d(deeper, fusion.expand.weight, padding=1)
        outputs.append(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5))
    return outputs[::-1]


@pytest.mark.parametrize('same_sizes', [True, False])
def test_fusion_against_functions(same_sizes):
    teacher = TEACHER if same_sizes else [(5, 4, 6), (7, 4, 4), (9, 5, 3), (9, 2, 2)]
    student = STUDENT if same_sizes else [(4, 9, 7), (6, 5, 4), (8, 2, 2), (8, )]
    loss = connected(student, teacher).double()
    for parameter in loss.buffers():  # statistics other than 0 and 1
        if parameter.is_floating_point():
            parameter.uniform_(0.5, 2)
    loss.eval()
    s, t = features(student, dtype=torch.float64), features(teacher, dtype=torch.float64, seed=2)
    outputs = fused_by_hand(loss, s, [(*shape[1:], 1, 1)[:2] for shape in teacher])
    expected = [hierarchical_context_loss(o, one.reshape(o.shape)) for o, one in zip(outputs, t, strict=True)]
    values = loss.values(s, t)
    assert [value.shape for value in values] == [(2, )] * 4
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(loss(s, t), sum(value.mean() for value in expected))


def test_fpn_levels_of_changing_size():
    shapes = [(8, size, size) for size in (32, 16, 8, 4, 2)]
    loss = connected(shapes, shapes, mid_channels=None)
    assert loss.fusions[0].reduce.out_channels == 8
    for sizes in ([(25, 42), (13, 21), (7, 11), (4, 6), (2, 3)], [shape[1:] for shape in shapes]):
        levels = [(8, *size) for size in sizes]
        value = loss(features(levels), features(levels, seed=2))
        assert torch.isfinite(value) and value.shape == ()


def test_channels():
    wide = connected([(4, 8, 8), (600, 4, 4)], [(5, 8, 8), (7, 4, 4)], mid_channels=None)
    assert [fusion.reduce.weight.shape[:2] for fusion in wide.fusions] == [(512, 4), (512, 600)]
    assert [fusion.expand.weight.shape[:2] for fusion in wide.fusions] == [(5, 512), (7, 512)]
    assert connected(mid_channels=256).fusions[0].reduce.out_channels == 256
    assert [fusion.attention is None for fusion in connected().fusions] == [False] * 3 + [True]


def test_every_parameter_and_level_learns():
    loss = connected()
    s, t = features(STUDENT, batch=4), features(TEACHER, batch=4, seed=2)
    learned = [one.requires_grad_() for one in s] + list(loss.parameters())
    before = loss(s, t)
    gradients = torch.autograd.grad(before, learned)
    assert all(torch.isfinite(one).all() for one in gradients)
    assert all(one.any() for one in gradients)
    with torch.no_grad():
        for one, gradient in zip(learned, gradients, strict=True):
            one -= 0.01 * gradient
    assert loss(s, t) < before


def test_deeper_levels_reach_shallower_ones():
    loss = connected()
    s, t = features(STUDENT), features(TEACHER, seed=2)
    for one in s:
        one.requires_grad_()
    shallowest, *_, deepest = loss.values(s, t)
    assert all(one.any() for one in torch.autograd.grad(shallowest.sum(), s))
    assert torch.autograd.grad(deepest.sum(), s[:-1], allow_unused=True) == (None, None, None)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(dtype):
    loss = connected()
    s, t = features(STUDENT, dtype=dtype), features(TEACHER, dtype=dtype, seed=2)
    value = loss(s, t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss([one.float() for one in s], [one.float() for one in t]))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert loss(s, t).dtype == torch.float32


@pytest.mark.parametrize('zero', [True, False])
def test_batch_of_one(zero):
    loss = connected()
    s, t = features(STUDENT, batch=1), features(TEACHER, batch=1, seed=2)
    s = [(one * 0 if zero else one).requires_grad_() for one in s]
    value = loss(s, t)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(one.grad).all() for one in s)


def test_levels_from_deep_to_shallow_are_refused():
    with pytest.raises(MMKDError, match=r'from shallow to deep levels, but heights are \[1, 2, 4, 8\]'):
        connected(STUDENT[::-1], TEACHER[::-1])


def test_registered():
    assert MODELS.build(dict(type='mmkd.ReviewKDLoss', weight=5.0)).weight == 5.0
