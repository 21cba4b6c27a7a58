"""The networks of CRD's benchmark, against what is known of their public checkpoints."""
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.nn import functional as F

from mmkd.errors import MMKDError
from tests.helpers.crd import FACTS, reference_weights
from tests.helpers.tiny import REPO, load_tool

pytest.importorskip('mmpretrain')


@pytest.fixture(autouse=True)
def _scope(_fresh_process):
    init_default_scope('mmpretrain')


@pytest.fixture(scope='module')
def converter():
    return load_tool('model_converters/crd_to_mmpretrain.py')


@pytest.fixture(params=FACTS)
def network(request) -> str:
    return request.param


def classifier(network: str):
    """Build a network of the benchmark with MMPretrain's neck and head."""
    return MODELS.build(Config.fromfile(REPO / f'configs/_base_/models/cifar/{network.lower()}.py').model)


def test_every_network_has_a_config_and_every_config_is_known():
    configs = {path.stem for path in (REPO / 'configs/_base_/models/cifar').glob('*.py')}
    assert configs == {name.lower() for name in FACTS}


def test_parameters(network):
    model = classifier(network)
    assert sum(parameter.numel() for parameter in model.parameters()) == FACTS[network]['params']
    *reference, weight, bias = FACTS[network]['state_dict'].items()
    named = {name.replace('.shortcut.', '.downsample.'): shape for name, shape in reference}
    assert named == {name: list(value.shape) for name, value in model.backbone.state_dict().items()
                     if 'num_batches_tracked' not in name}
    assert [list(model.head.fc.weight.shape), list(model.head.fc.bias.shape)] == [weight[1], bias[1]]


def test_mobilenet_of_full_width_has_the_parameters_of_sakds_released_code():
    model = MODELS.build(Config.fromfile(REPO / 'configs/cifar/networks/mobilenetv2_w1.py').model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_353_060


def test_stages(network):
    """The stem and the stages give the benchmark's features, and the forward pass is all of them in a row."""
    model = classifier(network)
    model.eval()
    backbone = model.backbone
    images = torch.randn(2, 3, 32, 32)
    outputs = {}
    for name, _ in backbone.stages():
        backbone.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.__setitem__(name, output))
    features = [backbone.stem(images)]
    for _, stage in backbone.stages():
        features.append(stage(features[-1]))
    last = backbone.tail(features[-1])
    pooled = model.neck((last, ))[0]
    assert [list(feature.shape[1:]) for feature in [*features, pooled]] == FACTS[network]['feature_shapes']
    for (name, _), feature in zip(backbone.stages(), features[1:], strict=True):
        assert outputs[name] is feature
    (output, ) = backbone(images)
    assert torch.equal(output, last)
    backbone.out_indices = tuple(range(len(features) - 1))
    for output, feature in zip(backbone(images), features[1:], strict=True):
        assert torch.equal(output, feature)


@pytest.mark.slow
def test_function(network, converter, tmp_path):
    """A converted network computes what its layers, called one by one on the original weights, compute."""
    weights = reference_weights(network)
    torch.save(dict(model=weights), tmp_path / 'reference.pth')
    name, _, model = converter.convert(str(tmp_path / 'reference.pth'))
    assert name == network.lower()
    model.double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    reference = {key: value.double() for key, value in weights.items()}
    features = [model.backbone.stem(images)]
    for _, stage in model.backbone.stages():
        features.append(stage(features[-1]))
    features.append(model.neck((model.backbone.tail(features[-1]), ))[0])
    logits = model(images, mode='tensor')
    expected = compute(network)(reference, images)
    for value, target in zip([*features, logits], expected, strict=True):
        scale = target.abs().max()
        assert target.std() > 0.01 * scale
        torch.testing.assert_close(value / scale, target / scale, rtol=1e-9, atol=1e-12)
    logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def conv(weights, name, x, stride=1):
    weight = weights[f'{name}.weight']
    return F.conv2d(x, weight, weights.get(f'{name}.bias'), stride, padding=weight.shape[-1] // 2,
                    groups=x.shape[1] // weight.shape[1])


def norm(weights, name, x):
    mean, var, weight, bias = (weights[f'{name}.{part}']
                               for part in ('running_mean', 'running_var', 'weight', 'bias'))
    shape = (1, -1, 1, 1)
    return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)


def conv_norm(weights, name, number, x, stride=1):
    return norm(weights, f'{name}bn{number}', conv(weights, f'{name}conv{number}', x, stride))


def blocks(weights, prefix):
    """Return the prefixes of a stage's blocks, with their strides if the stage starts with a stride of 2."""
    numbers = sorted({int(name[len(prefix):].split('.')[0]) for name in weights if name.startswith(prefix)})
    return [(f'{prefix}{number}.', 1 if number else 2) for number in numbers]


def shuffle(x, groups):
    """Channel j of group i becomes channel j * groups + i."""
    size = x.shape[1] // groups
    return x[:, [group * size + index for index in range(size) for group in range(groups)]]


def classify(weights, features, last, name):
    pooled = last.mean(dim=(2, 3))
    return [*features, pooled, pooled @ weights[f'{name}.weight'].T + weights[f'{name}.bias']]


def compute_resnet(weights, x):
    features = [conv_norm(weights, '', 1, x).relu()]
    bottleneck = 'layer4.0.conv1.weight' in weights
    for layer in range(1, 5 if bottleneck else 4):
        x = features[-1]
        for name, stride in blocks(weights, f'layer{layer}.'):
            stride = 1 if layer == 1 else stride
            y = conv_norm(weights, name, 1, x, 1 if bottleneck else stride).relu()
            y = conv_norm(weights, name, 2, y, stride if bottleneck else 1)
            if bottleneck:
                y = conv_norm(weights, name, 3, y.relu())
            shortcut = name + ('shortcut' if bottleneck else 'downsample')
            if f'{shortcut}.0.weight' in weights:
                x = norm(weights, f'{shortcut}.1', conv(weights, f'{shortcut}.0', x, stride))
            x = (x + y).relu()
        features.append(x)
    return classify(weights, features, x, 'linear' if bottleneck else 'fc')


def compute_wrn(weights, x):
    features = [conv(weights, 'conv1', x)]
    for block in (1, 2, 3):
        x = features[-1]
        for name, stride in blocks(weights, f'block{block}.layer.'):
            stride = 1 if block == 1 else stride
            y = norm(weights, f'{name}bn1', x).relu()
            if f'{name}convShortcut.weight' in weights:
                x = conv(weights, f'{name}convShortcut', y, stride)
            y = norm(weights, f'{name}bn2', conv(weights, f'{name}conv1', y, stride)).relu()
            x = x + conv(weights, f'{name}conv2', y)
        features.append(x)
    return classify(weights, features, norm(weights, 'bn1', x).relu(), 'fc')


def compute_vgg(weights, x):
    features = []
    for block in range(5):
        for number in range(0, 12, 3):
            if f'block{block}.{number}.weight' in weights:
                x = conv(weights, f'block{block}.{number}', x)
                x = norm(weights, f'block{block}.{number + 1}', x).relu()
        features.append(x)
        if block < 3:
            x = F.max_pool2d(x, 2)
    return classify(weights, features, x, 'classifier')


def compute_mobilenet(weights, x):
    x = norm(weights, 'conv1.1', conv(weights, 'conv1.0', x, 2)).relu()
    features = [x]
    for block, first in enumerate((1, 1, 2, 2, 1, 2, 1)):
        for name, stride in blocks(weights, f'blocks.{block}.'):
            stride = first if stride == 2 else 1
            y = norm(weights, f'{name}conv.1', conv(weights, f'{name}conv.0', x)).relu()
            y = norm(weights, f'{name}conv.4', conv(weights, f'{name}conv.3', y, stride)).relu()
            y = norm(weights, f'{name}conv.7', conv(weights, f'{name}conv.6', y))
            x = x + y if x.shape == y.shape else y
        if block in (1, 2, 4, 6):
            features.append(x)
    return classify(weights, features, norm(weights, 'conv2.1', conv(weights, 'conv2.0', x)).relu(),
                    'classifier.0')


def compute_shufflenet_v1(weights, x):
    x = conv_norm(weights, '', 1, x).relu()
    features = [x]
    for layer in (1, 2, 3):
        for name, stride in blocks(weights, f'layer{layer}.'):
            y = conv_norm(weights, name, 1, x).relu()
            y = shuffle(y, 1 if x.shape[1] == 24 else 3)
            y = conv_norm(weights, name, 2, y, stride).relu()
            y = conv_norm(weights, name, 3, y)
            x = torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1).relu() if stride == 2 else (x + y).relu()
        features.append(x)
    return classify(weights, features, x, 'linear')


def compute_shufflenet_v2(weights, x):
    x = conv_norm(weights, '', 1, x).relu()
    features = [x]
    for layer in (1, 2, 3):
        for name, stride in blocks(weights, f'layer{layer}.'):
            if stride == 2:
                left = conv_norm(weights, name, 2, conv_norm(weights, name, 1, x, 2)).relu()
                y = conv_norm(weights, name, 4, conv_norm(weights, name, 3, x).relu(), 2)
                right = conv_norm(weights, name, 5, y).relu()
            else:
                left, right = x[:, :x.shape[1] // 2], x[:, x.shape[1] // 2:]
                y = conv_norm(weights, name, 2, conv_norm(weights, name, 1, right).relu())
                right = conv_norm(weights, name, 3, y).relu()
            x = shuffle(torch.cat([left, right], 1), 2)
        features.append(x)
    return classify(weights, features, conv_norm(weights, '', 2, x).relu(), 'linear')


def compute(network):
    """Return the function that computes a network from weights and images: stem, stages, pooled, logits."""
    if network.startswith('Shuffle'):
        return compute_shufflenet_v1 if network == 'ShuffleV1' else compute_shufflenet_v2
    kinds = dict(resnet=compute_resnet, wrn=compute_wrn, vgg=compute_vgg, mobilenet=compute_mobilenet)
    return next(function for kind, function in kinds.items() if network.lower().startswith(kind))


def test_converting_without_some_tensor_fails(converter, tmp_path):
    weights = reference_weights('ResNet50')
    del weights['layer3.0.shortcut.0.weight']
    torch.save(weights, tmp_path / 'reference.pth')
    with pytest.raises(MMKDError, match=r'not those of any network .* 1 differ from those of resnet50'):
        converter.convert(str(tmp_path / 'reference.pth'))


def test_mobilenet_v1():
    backbone = MODELS.build(dict(type='mmkd.MobileNetV1', out_indices=(0, 1, 2, 3)))
    backbone.init_weights()
    # 4,231,976 with a classifier of 1000 classes (Howard et al., table 8: 4.2 million).
    assert sum(parameter.numel() for parameter in backbone.parameters()) + 1025 * 1000 == 4_231_976
    images = torch.randn(2, 3, 64, 64)
    outputs = backbone(images)
    assert [tuple(output.shape) for output in outputs] == [
        (2, 128, 16, 16), (2, 256, 8, 8), (2, 512, 4, 4), (2, 1024, 2, 2)]
    outputs[-1].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in backbone.parameters())
    features = backbone.stem(images)
    for (name, stage), output in zip(backbone.stages(), outputs, strict=True):
        assert stage is backbone.get_submodule(name)
        features = stage(features)
        torch.testing.assert_close(features, output)
    # Multiplications at 224 x 224 (the paper's 569 million are those of its convolutions and classifier).
    count = []
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: count.append(
                output[0].numel() * module.weight[0].numel()))
    backbone(torch.randn(1, 3, 224, 224))
    assert round((sum(count) + 1024 * 1000) / 1e6) == 569


@pytest.mark.parametrize(('name', 'layer'), [
    ('resnet8', 'layer2.0.conv1'), ('wrn_16_1', 'block2.layer.0.conv1'), ('vgg8', 'block2.0'),
    ('MobileNetV2', 'blocks.5.1.conv.3'), ('ResNet50', 'layer4.2.conv3')])
def test_initialization(name, layer):
    """Normal with variance 2 / fan out; residual branches do not start at zero."""
    model = classifier(name)
    model.init_weights()
    module = model.backbone.get_submodule(layer)
    assert module.weight.std().item() == pytest.approx((2 / module.weight[:, 0].numel())**0.5, rel=0.1)
    assert module.bias is None or not module.bias.any()
    for norm_layer in model.modules():
        if isinstance(norm_layer, torch.nn.BatchNorm2d):
            assert (norm_layer.weight == 1).all() and not norm_layer.bias.any()


@pytest.mark.parametrize('name', ['ShuffleV1', 'ShuffleV2', 'resnet8', 'wrn_16_1'])
def test_initialization_of_pytorch(name):
    """Uniform within 1 / sqrt(fan in), of all layers of the ShuffleNets and of the others' classifiers."""
    model = classifier(name)
    model.init_weights()
    weights = [model.head.fc.weight]
    if name.startswith('Shuffle'):
        weights += [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    for weight in weights:
        bound = weight[0].numel()**-0.5
        assert 0.8 * bound < weight.abs().max() <= bound
    assert model.head.fc.bias.any() == (name != 'wrn_16_1')


def test_what_enters_the_last_relu_can_be_recorded():
    backbone = MODELS.build(dict(type='mmkd.CRDResNet', depth=8))
    entered = []
    backbone.layer3[-1].relu.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    (output, ) = backbone(torch.randn(2, 3, 32, 32))
    assert (entered[-1] < 0).any()
    assert torch.equal(entered[-1].relu(), output)


@pytest.mark.parametrize(('cfg', 'message'), [
    (dict(type='mmkd.CRDResNet', depth=18), 'has depth 8, 14, 20, 32, 44, 56, 110, not 18'),
    (dict(type='mmkd.CRDWideResNet', depth=18, width=2), '6n . 4, such as 16 or 40, not 18'),
    (dict(type='mmkd.CRDWideResNet', depth=4, width=2), '6n . 4'),
    (dict(type='mmkd.CRDVGG', depth=12), 'has depth 8, 11, 13, 16, 19, not 12'),
    (dict(type='mmkd.CRDVGG', depth=8, out_indices=(4, )), r'out_indices=\(4,\) of CRDVGG must be .* 0 to 3'),
    (dict(type='mmkd.CRDMobileNetV2', out_indices=(5, )), 'of CRDMobileNetV2 must be some of 0 to 4'),
    (dict(type='mmkd.CRDShuffleNetV1', out_indices=()), 'must be some of 0 to 2'),
])
def test_wrong_settings(cfg, message):
    with pytest.raises(MMKDError, match=message):
        MODELS.build(cfg)


@pytest.mark.slow
def test_without_mmpretrain_the_error_names_it():
    code = "import sys; sys.modules['mmpretrain'] = None; import mmkd"
    run = subprocess.run([sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and 'not installed: mmpretrain.' in run.stderr
