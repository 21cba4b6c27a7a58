"""Files that are damaged, or of another format, are refused in one sentence."""
import pytest
import torch
from torch import nn

from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError


@pytest.mark.parametrize('make', [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 2))],
                         ids=['script', 'trace'])
def test_torchscript(tmp_path, make):
    make(nn.Linear(2, 2)).save(tmp_path / 'program.pth')
    with pytest.raises(MMKDError, match='TorchScript program'):
        load_checkpoint(tmp_path / 'program.pth')


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'truncated'), (b'no checkpoint at all', 'not a PyTorch checkpoint'),
    (b'PK\x03\x04rest', 'truncated')])
def test_broken_files(tmp_path, content, words):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(MMKDError, match=words) as caught:
        load_checkpoint(tmp_path / 'file.pth')
    assert '\n' not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / 'none.pth'):
        with pytest.raises(MMKDError, match='does not exist or is not a file'):
            load_checkpoint(path)


@pytest.mark.parametrize(('content', 'words'), [([1], 'holds a list'), (dict(model={}), r"\['model'\]")])
def test_other_content(tmp_path, content, words):
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(MMKDError, match=words):
        load_checkpoint(tmp_path / 'file.pth')
