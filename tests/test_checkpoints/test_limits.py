"""Small files that would take much memory or time are refused, by a process with limits."""
import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError
from mmkd.models.teachers.building import load_strictly
from tests.helpers.checkpoint_files import FORMATS, call, named, rewrite_zip, text, write_zip
from tests.helpers.loading_worker import LoadingWorker, problem


def put(index: int) -> bytes:
    return b'r' + index.to_bytes(4, 'little')


def get(index: int) -> bytes:
    return b'j' + index.to_bytes(4, 'little')


def long_text(length: int) -> bytes:
    return b'X' + length.to_bytes(4, 'little') + b'x' * length


def doubled(levels: int, empty: bytes, pair: bytes) -> bytes:
    """A value that holds the previous one twice, and so on."""
    return empty + put(0) + b''.join(
        b'0' + pair.replace(b'?', get(level)) + put(level + 1) for level in range(levels))


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


ENCODED = b']' + long_text(2**20) + put(0) + named('_codecs', 'encode') + put(1) + b'0' * 2 + b'(' + (
    get(1) + get(0) + text('latin1') + b'\x86R') * 5000 + b'e'
PICKLES = {
    'encoded again and again': ENCODED,
    'bytes of a length': call('builtins', 'bytes', 10**11),
    'bytearray of a length': call('builtins', 'bytearray', 10**11),
    'array of text': call('numpy', 'dtype', 'U999999999'),
    'hash of nested tuples': b'}' + doubled(60, b')', b'(??t') + b'Ns',
    'hash of a long tuple': b'}' + b'(' + b'K\x01' * 10**5 + b't' + put(0) + b'N' + b's' + b'}' + b'(' + (
        get(0) + b'N') * 10**5 + b'u' + b'0',
    'equal hashes of numbers': b'}(' + b''.join(number(k * (2**61 - 1)) + b'N' for k in range(30000)) + b'u',
    'equal hashes of tuples': b'}(' + b''.join(
        number(k) + number(-k) + b'\x86N' for k in range(30000)) + b'u',
    'lists that double': doubled(60, b']', b'](??e'),
    'text again and again': b'](' + long_text(2**20) + put(0) + get(0) * 10**5 + b'e',
    'depth': b']' * 5000 + b'a' * 4999,
    'a list in itself': b']' + put(0) + get(0) + b'a',
    'many instructions': b'](' + b'N' * 1_100_000 + b'e',
    'many sets': b'](' + b'\x8f\x94' * 600_000 + b'e',
    'many marks': b'(' * 1_100_000 + b'0',
    'a long number': b'\x8b' + (10**6).to_bytes(4, 'little') + b'\x7f' * 10**6,
    'a long decimal number': b'L' + b'9' * 10**6 + b'L\n',
    'text that is said to be long': b'\x8d' + (2**40).to_bytes(8, 'little') + b'x',
    'bytes that are said to be many': b'\x8e' + (2**62).to_bytes(8, 'little') + b'x',
    'a large index of the memo': b'](r\xff\xff\xff\x7fe',
}


def storage(size: int, key: str = '0') -> bytes:
    words = text('storage') + named('torch', 'FloatStorage') + text(key) + text('cpu')
    return b'(' + words + number(size) + b'tQ'


def write_tensor(path, *arguments) -> None:
    torch.save(dict(state_dict=dict(a=torch.arange(4.0))), path)
    value = b'\x80\x02}' + text('state_dict') + b'}' + text('a') + tensor(*arguments) + b'ss.'
    rewrite_zip(path, lambda records: records.update({'file/data.pkl': value}))


def tensor(source: bytes, offset: int, size: tuple, stride: tuple) -> bytes:
    return (named('torch._utils', '_rebuild_tensor_v2') + b'(' + source + number(offset)
            + pickle.dumps(size, 2)[2:-1] + pickle.dumps(stride, 2)[2:-1] + b'\x89N' + b'tR')


TENSORS = {
    'more elements than the record': (storage(10**9), 0, (10**9,), (1,)),
    'more elements than an int': (storage(2**62), 0, (2**62,), (1,)),
    'a negative number of elements': (storage(-1), 0, (1,), (1,)),
    'beyond the end': (storage(4), 0, (5,), (1,)),
    'a stride beyond the end': (storage(4), 0, (2, 2), (3, 1)),
    'an offset beyond the end': (storage(4), 4, (1,), (1,)),
    'an offset beyond the end of nothing': (storage(4), 2**40, (0,), (1,)),
    'a negative offset': (storage(4), -1, (1,), (1,)),
    'a negative stride': (storage(4), 3, (4,), (-1,)),
    'a negative size': (storage(4), 0, (-1,), (1,)),
    'an expanded number': (storage(4), 0, (10**10,), (0,)),
    'two expanded dimensions': (storage(4), 0, (10**5, 10**5), (0, 0)),
    'an overflow': (storage(4), 0, (2**40, 2**40), (0, 0)),
}


@pytest.fixture(scope='module')
def worker(tmp_path_factory):
    with LoadingWorker(tmp_path_factory.mktemp('empty')) as worker:
        yield worker


def refuse(worker, path, *words) -> None:
    answer = worker.load(path)
    assert problem(answer) is None, answer
    assert answer['outcome'] == 'refused'
    for word in words:
        assert word in answer['sentence']


@pytest.mark.slow
@pytest.mark.parametrize('form', ['zip', 'legacy'])
def test_pickles(worker, tmp_path, form):
    for name, value in PICKLES.items():
        FORMATS[form](tmp_path / 'bomb.pth', value)
        assert problem(answer := worker.load(tmp_path / 'bomb.pth')) is None, (name, answer)
        assert answer['outcome'] == 'refused', name


@pytest.mark.slow
def test_tensors(worker, tmp_path):
    for name, arguments in TENSORS.items():
        write_tensor(tmp_path / 'file.pth', *arguments)
        assert problem(answer := worker.load(tmp_path / 'file.pth')) is None, (name, answer)
        assert answer['outcome'] == 'refused', name


def test_the_tensors_above_are_otherwise_right(tmp_path):
    write_tensor(tmp_path / 'file.pth', storage(4), 1, (3, 2), (1, 0))
    assert load_checkpoint(tmp_path / 'file.pth')['state_dict']['a'].tolist() == [[1, 1], [2, 2], [3, 3]]


@pytest.mark.slow
def test_compressed_tensor(worker, tmp_path):
    torch.save(dict(state_dict=dict(a=torch.zeros(400_000_000 // 4))), tmp_path / 'file.pth')
    rewrite_zip(tmp_path / 'file.pth', lambda records: None, zipfile.ZIP_DEFLATED)
    assert (tmp_path / 'file.pth').stat().st_size < 2_000_000
    refuse(worker, tmp_path / 'file.pth', 'larger than the file')


def test_records_that_overlap(tmp_path):
    # Every entry of the directory points at the same bytes.
    torch.save(dict(state_dict=dict(a=torch.zeros(10_000))), tmp_path / 'file.pth')
    with zipfile.ZipFile(tmp_path / 'file.pth') as source:
        records = {name: source.read(name) for name in source.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as target:
        for name, content in records.items():
            target.writestr(name, content)
        data = target.getinfo('file/data/0')
        for number in range(1, 50):
            other = zipfile.ZipInfo(f'file/data/{number}')
            other.header_offset, other.CRC = data.header_offset, data.CRC
            other.file_size = other.compress_size = data.file_size
            target.filelist.append(other)
            target.NameToInfo[other.filename] = other
        target._didModify = True
    (tmp_path / 'file.pth').write_bytes(buffer.getvalue())
    with pytest.raises(MMKDError, match='larger than the file'):
        load_checkpoint(tmp_path / 'file.pth')


@pytest.mark.slow
def test_old_format_that_declares_more_than_it_holds(worker, tmp_path):
    torch.save(dict(state_dict=dict(a=torch.arange(4.0))), tmp_path / 'file.pth',
               _use_new_zipfile_serialization=False)
    content = (tmp_path / 'file.pth').read_bytes()
    declared = b'cpu' + content.split(b'cpu', 1)[1].split(b'K\x04', 1)[0]
    assert content.count(declared + b'K\x04') == 1
    for size in (10**9, 2**31 - 1, -1):
        changed = content.replace(declared + b'K\x04', declared + number(size))
        (tmp_path / 'file.pth').write_bytes(changed)
        refuse(worker, tmp_path / 'file.pth', 'cannot be read')


# Names in messages


NAMES = ['a\nerror: all is well', '\x1b[2J\x1b[31mred', 'a\rb', 'right\u202eleft', 'x' * 5000, 'null\x00', 5]


@pytest.mark.parametrize('name', NAMES)
def test_names_of_tensors(tmp_path, name):
    for content in ({name: torch.ones(1)}, dict(state_dict={name: torch.ones(1)}),
                    {'state_dict': {}, name: 1}, dict(state_dict={}, ema_state_dict={name: torch.ones(1)}),
                    dict(state_dict={}, meta=dict(dataset_meta=dict(classes=(name, ))))):
        if name == 5 and 'meta' in content:
            continue
        torch.save(content, tmp_path / 'file.pth')
        with pytest.raises(MMKDError) as caught:
            load_checkpoint(tmp_path / 'file.pth')
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize('name', NAMES[:-1])
def test_names_of_classes_and_functions(tmp_path, name):
    for value in (b'c' + name.encode().replace(b'\n', b'') + b'\nf\n',
                  call('builtins', 'getattr', name, name), call('_codecs', 'encode', name, name),
                  call('numpy', 'dtype', name), call('torch', 'device', name)):
        write_zip(tmp_path / 'file.pth', value)
        with pytest.raises(MMKDError) as caught:
            load_checkpoint(tmp_path / 'file.pth')
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_names_that_do_not_fit_a_network():
    for name in NAMES[:-1]:
        with pytest.raises(MMKDError, match='unexpected') as caught:
            load_strictly(nn.Linear(1, 1), {name: torch.ones(1)}, 'teacher checkpoint')
        assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    with pytest.raises(MMKDError, match='holds a int under weight'):
        load_strictly(nn.Linear(1, 1), OrderedDict(weight=1), 'teacher checkpoint')
