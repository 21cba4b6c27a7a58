"""The pre-activation ResNet of Intel's Distiller."""
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch.nn import functional as F

from mmkd.errors import MMKDError

pytest.importorskip('mmpretrain')


@pytest.fixture(autouse=True)
def _scope(_fresh_process):
    init_default_scope('mmpretrain')


def network(depth: int = 20, **settings):
    return MODELS.build(dict(type='mmkd.PreActResNet', depth=depth, **settings))


@pytest.mark.parametrize(('depth', 'parameters'), [(20, 269072), (32, 463504)])
def test_parameters(depth, parameters):
    """By hand, for n blocks a stage: convolutions, and batch norms with two numbers a channel."""
    n = (depth - 2) // 6
    convolutions = 3 * 16 + 2 * n * 16 * 16 + (16 + (2 * n - 1) * 32) * 32 + (32 + (2 * n - 1) * 64) * 64
    norms = 2 * n * 16 + (16 + (2 * n - 1) * 32) + (32 + (2 * n - 1) * 64) + 64
    assert 9 * convolutions + 2 * norms == parameters
    assert sum(parameter.numel() for parameter in network(depth).parameters()) == parameters


def test_function():
    """The layers one by one, with shortcuts from the definition."""
    model = network(out_indices=(0, 1, 2, 3)).double()
    model.eval()  # returns nothing
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x, expected = model.conv1(images), []
    for stage, channels in (('layer1', 16), ('layer2', 32), ('layer3', 64)):
        for block in getattr(model, stage):
            residual = block.conv2(block.bn2(block.conv1(block.bn1(x).relu())).relu())
            shortcut = x
            if x.shape[1] != channels:
                pooled = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
                zeros = torch.zeros_like(pooled[:, :channels // 4])
                shortcut = torch.cat([zeros, pooled, zeros], 1)
            x = residual + shortcut
        expected.append(x)
    expected.append(model.bn1(x).relu())
    for output, value in zip(model(images), expected, strict=True):
        torch.testing.assert_close(output, value)
    assert [list(value.shape[1:]) for value in expected] == [
        [16, 32, 32], [32, 16, 16], [64, 8, 8], [64, 8, 8]]
    assert not F.relu(-expected[-1]).any()


def test_initialization():
    """He et al.'s normal distribution by the number of outputs, as in Distiller."""
    model = network()
    model.init_weights()
    weight = model.layer3[2].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64))**0.5, rel=0.03)


@pytest.mark.parametrize('depth', [2, 18, 21])
def test_depths(depth):
    with pytest.raises(MMKDError, match=f'6n . 2, such as 20 or 32, not {depth}'):
        network(depth)
