import pytest
import torch
from torch.nn import functional as F

from mmkd.errors import MMKDError
from mmkd.models.connectors import ConvConnector, LinearConnector
from mmkd.registry import MODELS


def connected(connector, student, teacher):
    torch.manual_seed(0)
    connector.build(student, teacher)
    connector.init_weights()
    return connector


@pytest.mark.parametrize(('student', 'teacher', 'kernel', 'stride'), [
    ((4, 8, 6), (5, 4, 3), (3, 3), (2, 2)),
    ((4, 4, 3), (5, 8, 6), (4, 4), (2, 2)),
    ((4, 7, 6), (5, 4, 4), (4, 3), (1, 1)),
    ((4, 6, 6), (5, 6, 6), (1, 1), (1, 1)),
    ((4, 2, 3), (5, 8, 7), (4, 3), (4, 2)),
], ids=['halved', 'doubled', 'valid', 'same', 'enlarged'])
def test_fitnet_regressor_has_the_teachers_shape(student, teacher, kernel, stride):
    connector = connected(ConvConnector(), student, teacher)
    assert connector.layers[0].kernel_size == kernel and connector.layers[0].stride == stride
    assert connector(torch.randn(2, *student)).shape == (2, *teacher)


@pytest.mark.parametrize('kernel_size', [1, 3])
def test_given_kernel_keeps_height_and_width(kernel_size):
    connector = connected(ConvConnector(kernel_size), (4, 8, 8), (5, 3, 3))
    assert connector.layers[0].kernel_size == (kernel_size, kernel_size)
    assert connector(torch.randn(2, 4, 9, 7)).shape == (2, 5, 9, 7)


def test_same_shapes_need_no_layers():
    for settings, student, skipped in ((dict(), (4, 8, 8), True), (dict(), (4, 4, 4), False),
                                       (dict(kernel_size=1), (4, 4, 4), True),
                                       (dict(kernel_size=1), (3, 8, 8), False)):
        connector = connected(ConvConnector(skip_same=True, **settings), student, (4, 8, 8))
        assert (not list(connector.parameters())) == skipped


def test_larger_maps_are_pooled_before_the_convolution():
    plain = connected(ConvConnector(1), (4, 4, 4), (5, 4, 4))
    pooling = connected(ConvConnector(1, pool=True), (4, 8, 8), (5, 4, 4))
    feature = torch.randn(2, 4, 16, 12)
    assert torch.equal(pooling(feature), plain(F.avg_pool2d(feature, 2)))
    assert len(connected(ConvConnector(1, pool=True), (4, 4, 4), (5, 8, 8)).layers) == 3


def test_norm_and_relu_follow_and_can_be_left_out():
    feature = torch.randn(2, 4, 6, 6)
    full = connected(ConvConnector(), (4, 6, 6), (5, 6, 6))
    bare = connected(ConvConnector(norm=False, relu=False), (4, 6, 6), (5, 6, 6))
    plain = F.conv2d(feature, bare.layers[0].weight, bare.layers[0].bias)
    assert len(bare.layers) == 1
    torch.testing.assert_close(bare(feature), plain)
    convolved = F.conv2d(feature, full.layers[0].weight)
    torch.testing.assert_close(full(feature), F.batch_norm(convolved, None, None, training=True).relu())


def test_out_channels_override_the_teachers():
    convolution = connected(ConvConnector(out_channels=3), (4, 6, 6), (5, 6, 6))
    assert convolution(torch.randn(2, 4, 6, 6)).shape == (2, 3, 6, 6)
    assert connected(LinearConnector(out_channels=3), (4, ), (5, ))(torch.randn(2, 4)).shape == (2, 3)


def test_shapes_that_no_convolution_joins_are_refused():
    with pytest.raises(MMKDError, match='4x8 to 7x7'):
        ConvConnector().build((4, 4, 8), (5, 7, 7))
    with pytest.raises(MMKDError, match='feature maps'):
        ConvConnector().build((4, 4, 4), (5, ))


def test_linear_takes_vectors_and_flattens_maps():
    vector = connected(LinearConnector(), (4, ), (5, ))
    torch.testing.assert_close(
        vector(torch.ones(2, 4)), (vector.layer.weight.sum(1) + vector.layer.bias).expand(2, 5))
    assert connected(LinearConnector(), (4, 3, 2), (5, ))(torch.randn(2, 4, 3, 2)).shape == (2, 5)


def test_normalized_linear_has_length_one_and_survives_zeros():
    connector = connected(LinearConnector(normalize=True), (4, ), (5, ))
    torch.testing.assert_close(connector(torch.randn(3, 4)).norm(dim=1), torch.ones(3))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert connector(torch.randn(3, 4)).dtype == torch.float32
    torch.nn.init.zeros_(connector.layer.bias)
    zeros = torch.zeros(1, 4, requires_grad=True)
    result = connector(zeros)
    result.sum().backward()
    assert result.abs().sum() == 0 and torch.isfinite(zeros.grad).all()


@pytest.mark.parametrize('make', [ConvConnector, LinearConnector])
def test_connectors_are_registered_and_trained(make):
    connector = MODELS.build(dict(type=f'mmkd.{make.__name__}'))
    assert type(connector) is make
    connected(connector, (4, 2, 2), (5, 2, 2))
    feature = torch.randn(3, 4, 2, 2, requires_grad=True)
    connector(feature).square().sum().backward()
    assert feature.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in connector.parameters())
