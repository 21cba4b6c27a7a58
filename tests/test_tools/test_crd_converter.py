"""Public checkpoints of CRD's benchmark become MMPretrain's, and nothing else does."""
import os

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmkd.checkpoints import load_checkpoint
from tests.helpers.crd import reference_weights

TOOL = 'model_converters/crd_to_mmpretrain.py'


def as_training_saves(weights: dict) -> dict:
    """As from a run on several GPUs, with other things beside the weights."""
    return dict(model={f'module.{name}': value for name, value in weights.items()}, epoch=240,
                best_acc=torch.tensor(75.6), accuracy=np.float64(75.6),
                optimizer=dict(state={}, param_groups=[dict(lr=0.05, params=[0, 1])]))


@pytest.mark.parametrize(('network', 'content', 'legacy'), [
    ('wrn_16_1', as_training_saves, True),
    ('ShuffleV2', lambda weights: dict(state_dict=weights), False),
    ('resnet8', lambda weights: weights, False),
])
def test_conversion(run, tmp_path, network, content, legacy):
    weights = reference_weights(network)
    torch.save(content(weights), tmp_path / 'reference.pth', _use_new_zipfile_serialization=not legacy)
    ended = run(TOOL, tmp_path / 'reference.pth', tmp_path / 'made' / 'converted.pth')
    assert ended.code == 0, ended.err
    assert f'{network.lower()} with 100 classes' in ended.out
    converted = load_checkpoint(str(tmp_path / 'made' / 'converted.pth'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromstring(converted['meta']['cfg'], '.py').model)
    model.load_state_dict(converted['state_dict'])
    *backbone, weight, bias = weights
    for name in backbone:
        assert torch.equal(converted['state_dict'][f'backbone.{name}'], weights[name])
    assert torch.equal(converted['state_dict']['head.fc.weight'], weights[weight])
    assert torch.equal(converted['state_dict']['head.fc.bias'], weights[bias])


def test_other_classes_and_counted_batches(run, tmp_path):
    weights = reference_weights('resnet8')
    weights['fc.weight'], weights['fc.bias'] = torch.randn(200, 64), torch.randn(200)
    weights['layer1.0.bn2.num_batches_tracked'] = torch.tensor(7)
    torch.save(weights, tmp_path / 'reference.pth')
    ended = run(TOOL, tmp_path / 'reference.pth', tmp_path / 'converted.pth', '--network', 'ResNet8')
    assert ended.code == 0, ended.err
    assert 'resnet8 with 200 classes' in ended.out
    converted = load_checkpoint(str(tmp_path / 'converted.pth'))
    assert 'num_classes=200' in converted['meta']['cfg']
    assert converted['state_dict']['backbone.layer1.0.bn2.num_batches_tracked'] == 7
    assert converted['state_dict']['backbone.bn1.num_batches_tracked'] == 0


def misshapen(weights):
    weights['layer2.0.conv1.weight'] = weights['layer2.0.conv1.weight'][:, :3]
    return weights


def without_classifier(weights):
    return {name: value for name, value in weights.items() if not name.startswith('fc.')}


def with_two_classifiers(weights):
    return dict(weights, **{'linear.weight': weights['fc.weight']})


def with_more(weights):
    return dict(weights, **{'layer4.0.bn1.num_batches_tracked': torch.tensor(0)})


@pytest.mark.parametrize(('change', 'words'), [
    (misshapen, ["1 differ from those of resnet8, such as 'layer2.0.conv1.weight'"]),
    (without_classifier, ['2 differ from those of resnet8']),
    (with_two_classifiers, ["such as 'fc.weight'"]),
    (with_more, ["1 differ from those of resnet8, such as 'layer4.0.bn1.num_batches_tracked'"]),
    (lambda weights: {}, ['has no "state_dict"']),
    (lambda weights: dict(a=torch.zeros(1)), ['are not those of any network in the benchmark']),
], ids=['misshapen', 'no classifier', 'two classifiers', 'more', 'empty', 'another'])
def test_tensors_of_no_network(refused, tmp_path, change, words):
    torch.save(dict(model=change(reference_weights('resnet8'))), tmp_path / 'reference.pth')
    refused(TOOL, [tmp_path / 'reference.pth', tmp_path / 'converted.pth'], 'reference.pth', *words)


def test_another_network_than_asked_for(refused, tmp_path):
    torch.save(dict(model=reference_weights('resnet8')), tmp_path / 'reference.pth')
    arguments = [tmp_path / 'reference.pth', tmp_path / 'converted.pth', '--network']
    refused(TOOL, [*arguments, 'vgg8'], 'not those of vgg8: they are those of resnet8')
    refused(TOOL, [*arguments, 'resnet8x5'], "no network 'resnet8x5'", "'resnet8x4'")
    torch.save(dict(model=misshapen(reference_weights('resnet8'))), tmp_path / 'reference.pth')
    refused(TOOL, [*arguments, 'vgg8'], 'not those of vgg8', 'differ')


def test_existing_file(refused, tmp_path):
    torch.save(dict(model=reference_weights('resnet8')), tmp_path / 'reference.pth')
    (tmp_path / 'converted.pth').write_bytes(b'precious')
    refused(TOOL, [tmp_path / 'reference.pth', tmp_path / 'converted.pth'], 'converted.pth', 'already exists')


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


@pytest.mark.parametrize(('content', 'words'), [
    (None, ['does not exist']),
    (b'no checkpoint', ['cannot be read']),
    (dict(epoch=1, model=None), ['has no "state_dict"']),
    (dict(model=[1, 2]), ['has no "state_dict"']),
    (dict(model=dict(fc=1)), ['has no "state_dict"']),
    (dict(state_dict=dict(fc=1)), ['not a dict of tensors']),
], ids=['missing', 'no file of PyTorch', 'no weights', 'a list', 'numbers', 'named numbers'])
def test_no_weights(refused, tmp_path, content, words):
    path = tmp_path / 'reference.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    refused(TOOL, [path, tmp_path / 'converted.pth'], 'reference.pth', *words)


def test_nothing_in_the_file_is_run(refused, tmp_path):
    torch.save(dict(model=reference_weights('resnet8'), more=Attack(tmp_path / 'attacked')),
               tmp_path / 'reference.pth')
    refused(TOOL, [tmp_path / 'reference.pth', tmp_path / 'converted.pth'], 'mkdir', 'was not loaded')
    assert not (tmp_path / 'attacked').exists()
