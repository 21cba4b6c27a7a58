"""What MMEngine loads in mmkd's tools is read as data."""
import os

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from mmengine.runner import load_checkpoint as load_into
from torch import nn

from mmkd.checkpoints import SAFE_PREFIX, mmengine_loaders, use_safe_loaders
from mmkd.cli import run_tool
from mmkd.errors import MMKDError
from tests.helpers.checkpoint_files import call, write_zip


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


@pytest.fixture
def attack(tmp_path):
    write_zip(tmp_path / 'attack.pth', call('os', 'mkdir', str(tmp_path / 'executed')))
    yield tmp_path / 'attack.pth'
    assert not (tmp_path / 'executed').exists()


@pytest.fixture
def weights(tmp_path):
    torch.save(dict(state_dict=nn.Linear(2, 1).state_dict()), tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def test_prefix(weights):
    model = nn.Linear(2, 1)
    loaded = load_into(model, f'{SAFE_PREFIX}{weights}')
    assert torch.equal(model.weight, loaded['state_dict']['weight'])


def test_prefix_refuses_code(attack):
    with pytest.raises(MMKDError, match='os.mkdir'):
        CheckpointLoader.load_checkpoint(f'{SAFE_PREFIX}{attack}', map_location='cpu')


@pytest.mark.parametrize('prefix', ['', SAFE_PREFIX])
def test_text_that_mmengine_would_run_is_dropped(tmp_path, prefix):
    # On resuming, MMEngine's Runner executes meta.config as a Python config; nothing writes it today.
    use_safe_loaders()
    torch.save(dict(state_dict={}, meta=dict(config='import os', epoch=3)), tmp_path / 'file.pth')
    loaded = CheckpointLoader.load_checkpoint(f'{prefix}{tmp_path / "file.pth"}', map_location='cpu')
    assert loaded['meta'] == dict(epoch=3)


def test_every_tool_uses_safe_loaders(attack, weights):
    class Network(BaseModule):
        def __init__(self, checkpoint):
            super().__init__(dict(type='Pretrained', checkpoint=str(checkpoint)))
            self.weight = nn.Parameter(torch.zeros(1, 2))
            self.bias = nn.Parameter(torch.zeros(1))

    def main():
        Network(weights).init_weights()
        with pytest.raises(MMKDError, match='os.mkdir'):
            Network(attack).init_weights()
        with pytest.raises(Exception, match='os.mkdir|Weights only'):
            torch.load(attack, weights_only=False)

    run_tool(main)
    model = Network(weights)
    model.init_weights()
    assert model.weight.abs().sum() > 0


def test_published_weights(tmp_path, weights, monkeypatch):
    use_safe_loaders()
    asked = []

    def download(path, role):
        asked.append(path)
        return str(weights)

    monkeypatch.setattr('mmkd.checkpoints.safe_loading.local_file', download)
    for name in ('torchvision://resnet50', 'open-mmlab://detectron2/resnet50_caffe', 'openmmlab://vgg16_caffe',
                 'modelzoo://resnet50'):
        assert 'weight' in CheckpointLoader.load_checkpoint(name, 'cpu')['state_dict']
    assert [os.path.basename(path).split('-')[0] for path in asked] == [
        'resnet50', 'resnet50_msra', 'vgg16_caffe', 'resnet50']
    with pytest.raises(MMKDError, match="no weights 'resnet5' under torchvision://.*'resnet50'"):
        CheckpointLoader.load_checkpoint('torchvision://resnet5', 'cpu')


def test_published_weights_of_mmcls(tmp_path, monkeypatch):
    use_safe_loaders()
    torch.save(dict(state_dict={'backbone.a': torch.ones(1), 'head.b': torch.ones(1)}), tmp_path / 'file.pth')
    path = str(tmp_path / 'file.pth')
    monkeypatch.setattr('mmkd.checkpoints.safe_loading.local_file', lambda *_: path)
    name = next(iter(mmengine_loaders._PUBLISHED['mmcls://']()))
    assert list(CheckpointLoader.load_checkpoint(f'mmcls://{name}', 'cpu')['state_dict']) == ['a']


@pytest.mark.parametrize('address', ['s3://bucket/a.pth', 'petrel://a.pth', 'cluster:s3://a.pth', 'pavi://a'])
def test_other_storage(address):
    use_safe_loaders()
    with pytest.raises(MMKDError, match='cannot be loaded as data'):
        CheckpointLoader.load_checkpoint(address, 'cpu')


def test_opting_in(weights, monkeypatch):
    monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', '1')
    use_safe_loaders()
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '0'
    assert 'weight' in CheckpointLoader.load_checkpoint(str(weights), 'cpu')['state_dict']
