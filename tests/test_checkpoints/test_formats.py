"""Files that are damaged, or of another format, are refused in one sentence."""
import io
import os
import pickle
import stat
import tarfile

import pytest
import torch
from torch import nn

from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError
from tests.helpers.checkpoint_files import rewrite_zip


@pytest.fixture(params=['zip', 'legacy'])
def weights(request, tmp_path):
    """A checkpoint with two storages of 4 kB."""
    torch.save(dict(state_dict=dict(a=torch.arange(1000.0), b=torch.ones(1000))), tmp_path / 'weights.pth',
               _use_new_zipfile_serialization=request.param == 'zip')
    return tmp_path / 'weights.pth'


# Other formats


@pytest.fixture
def program(tmp_path):
    """A TorchScript archive."""
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / 'program.pth')
    return tmp_path / 'program.pth'


def test_torchscript(program):
    with pytest.raises(MMKDError, match='TorchScript program'):
        load_checkpoint(program)


@pytest.mark.parametrize('end', [b'PK\x05\x06', b'PK\x05\x06' + bytes(18), bytes(100)])
@pytest.mark.parametrize('opted_in', [False, True])
def test_torchscript_that_looks_like_something_else(program, monkeypatch, end, opted_in):
    # Python's zipfile does not take the first file for an archive, and torch does.
    program.write_bytes(program.read_bytes() + end)
    if opted_in:
        monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', '1')
    monkeypatch.setattr(torch.jit, 'load', lambda *_, **__: pytest.fail('the program was loaded'))
    with pytest.raises(MMKDError, match='TorchScript|damaged'):
        load_checkpoint(program)


def tar_of(members) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode='w', format=tarfile.PAX_FORMAT) as archive:
        for member, text in members:
            archive.addfile(member, io.BytesIO(text))
    return content.getvalue()


def test_tar_with_a_hard_link(tmp_path):
    # torch extracts `storages`, and with it gives the link's target another mode and owner.
    private = tmp_path / 'private'
    private.write_text('key')
    private.chmod(0o600)
    link = tarfile.TarInfo('storages')
    link.type, link.linkname, link.mode = tarfile.LNKTYPE, str(private), 0o6777
    (tmp_path / 'file.pth').write_bytes(tar_of([(link, b'')]))
    with pytest.raises(MMKDError, match='tar archive'):
        load_checkpoint(tmp_path / 'file.pth')
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


@pytest.mark.parametrize('magic', [b'ustar\x00', b'ustar ', b'\x00' * 6])
def test_tar_with_a_pipe(tmp_path, magic):
    pipe = tarfile.TarInfo('storages')
    pipe.type = tarfile.FIFOTYPE
    content = bytearray(tar_of([(pipe, b'')]))
    content[257:263] = magic
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(MMKDError, match='tar archive|not a PyTorch checkpoint'):
        load_checkpoint(tmp_path / 'file.pth')


def test_what_is_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'link').symlink_to('/dev/zero')
    for path in (tmp_path / 'pipe', tmp_path / 'link', '/dev/zero'):
        with pytest.raises(MMKDError, match='not a regular file'):
            load_checkpoint(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / 'none.pth'):
        with pytest.raises(MMKDError, match='does not exist or is not a file'):
            load_checkpoint(path)


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'truncated'), (b'no checkpoint at all', 'not a PyTorch checkpoint'),
    (b'PK\x03\x04rest', 'truncated'), (b'\n <html>', 'web page')])
def test_files_that_are_no_checkpoints(tmp_path, content, words):
    (tmp_path / 'file.pth').write_bytes(content)
    with pytest.raises(MMKDError, match=words) as caught:
        load_checkpoint(tmp_path / 'file.pth')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('content', 'words'), [
    ([1], 'holds a list'), (dict(model={}), r"\['model'\]"),
    (dict(state_dict=[1]), 'a list as its "state_dict"'),
    (dict(state_dict={}, meta=[1]), 'a list as its "meta"')])
def test_other_content(tmp_path, content, words):
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(MMKDError, match=words):
        load_checkpoint(tmp_path / 'file.pth')


# Damage


def test_one_changed_bit_in_an_archive(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.arange(100.0))), tmp_path / 'weights.pth')
    content = (tmp_path / 'weights.pth').read_bytes()
    first = content.index(torch.arange(100.0).numpy().tobytes())
    for position in range(first, first + 400, 13):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (tmp_path / 'damaged.pth').write_bytes(damaged)
        with pytest.raises(MMKDError, match='damaged.*CRC'):
            load_checkpoint(tmp_path / 'damaged.pth')


def test_an_archive_without_checksums(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this torch always writes checksums')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(state_dict=dict(a=torch.ones(3))), tmp_path / 'weights.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_checkpoint(tmp_path / 'weights.pth')['state_dict']['a'], torch.ones(3))


def test_truncation_anywhere(weights):
    content = weights.read_bytes()
    for length in range(0, len(content), len(content) // 50):
        weights.write_bytes(content[:length])
        with pytest.raises(MMKDError, match='truncated'):
            load_checkpoint(weights)


def test_records_of_an_archive(tmp_path):
    path = tmp_path / 'weights.pth'

    def save():
        torch.save(dict(state_dict=dict(a=torch.arange(4.0))), path)

    def rename(records, old, new):
        records[new] = records.pop(old)

    folder = 'weights'
    for change, words in (
            (lambda records: records.pop(f'{folder}/data/0'), 'one of its storages is missing'),
            (lambda records: records.update({f'{folder}/data/0': bytes(15)}), 'the size that it should have'),
            (lambda records: records.update({f'{folder}/data/0': bytes(17)}), 'the size that it should have'),
            (lambda records: records.update({f'{folder}/byteorder': b'big'}), 'byte order'),
            (lambda records: rename(records, f'{folder}/data.pkl', 'data.pkl'), 'no data.pkl'),
            (lambda records: records.update({'other/data.pkl': b'N.'}), 'no data.pkl'),
            (lambda records: records.update({f'{folder}/constants.pkl': b''}), 'TorchScript')):
        save()
        rewrite_zip(path, change)
        with pytest.raises(MMKDError, match=words):
            load_checkpoint(path)
    save()
    rewrite_zip(path, lambda records: None)
    assert load_checkpoint(path)['state_dict']['a'].sum() == 6


def test_the_old_format_with_other_storages(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=dict(a=torch.arange(4.0))), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    position = content.index((4).to_bytes(8, 'little') + torch.arange(4.0).numpy().tobytes())
    changed = content[:position] + (3).to_bytes(8, 'little') + content[position + 8:]
    for damaged in (changed, pickle.dumps(1) + content):
        path.write_bytes(damaged)
        with pytest.raises(MMKDError, match='cannot be read'):
            load_checkpoint(path)
