"""Files that are made to run code, to change the process or to take all its memory are refused."""
import argparse
import contextlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError
from tests.helpers.checkpoint_files import (
    FORMATS,
    Made,
    MadeWithKeywords,
    call,
    named,
    text,
    write_legacy,
    write_zip,
)


@pytest.mark.parametrize('form', FORMATS)
def test_code_is_not_run(tmp_path, monkeypatch, form):
    path, marker = tmp_path / 'attack.pth', tmp_path / 'executed'
    FORMATS[form](path, call('os', 'mkdir', str(marker)))
    with pytest.raises(MMKDError, match=r'os\.mkdir.*MMKD_ALLOW_UNSAFE_CHECKPOINTS=1'):
        load_checkpoint(path)
    assert not marker.exists()

    monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', '1')
    with contextlib.suppress(MMKDError):  # the result is no checkpoint, but the file has been run by then
        load_checkpoint(path)
    assert marker.exists()  # so the file was a real attack


INNER = pickle.dumps(argparse.Namespace())
REFUSED = {
    'os.system': ('os', 'system', 'exit 1'),
    'posix.system': ('posix', 'system', 'exit 1'),
    'builtins.eval': ('builtins', 'eval', '1'),
    'builtins.exec': ('builtins', 'exec', '1'),
    'builtins.__import__': ('builtins', '__import__', 'this'),
    'builtins.open': ('builtins', 'open', '/dev/null'),
    'builtins.type': ('builtins', 'type', 'T', (), {}),
    '__builtin__.eval': ('__builtin__', 'eval', '1'),
    'functools.partial': ('functools', 'partial', dict),
    'operator.attrgetter': ('operator', 'attrgetter', 'system'),
    'operator.methodcaller': ('operator', 'methodcaller', 'clear'),
    'pickle.loads': ('pickle', 'loads', INNER),
    '_pickle.loads': ('_pickle', 'loads', INNER),
    'torch.load': ('torch', 'load', '/dev/null'),
    'torch.hub.load': ('torch.hub', 'load', 'a/b', 'c'),
    'torch.storage._load_from_bytes': ('torch.storage', '_load_from_bytes', INNER),
    'torch._utils._rebuild_device_tensor_from_numpy': (
        'torch._utils', '_rebuild_device_tensor_from_numpy', 1, 2, 3, 4),
    'torch.nn.modules.linear.Linear': ('torch.nn.modules.linear', 'Linear', 1, 1),
    'mmengine.config.config.Config': ('mmengine.config.config', 'Config', {}),
    'numpy.load': ('numpy', 'load', '/dev/null'),
    'numpy.core.multiarray.fromfile': ('numpy.core.multiarray', 'fromfile', '/dev/null'),
    # Dotted names reach any attribute of what is imported.
    'collections.OrderedDict.fromkeys': ('collections', 'OrderedDict.fromkeys', 'ab'),
    'torch._utils.sys.exit': ('torch._utils', 'sys.exit', 2),
    'torch.Tensor.__class__': ('torch', 'Tensor.__class__', 1),
    'mmengine.logging.history_buffer.HistoryBuffer.__init__': (
        'mmengine.logging.history_buffer', 'HistoryBuffer.__init__', 1),
    'numpy.dtypes.Float64DType.mroDType': ('numpy.dtypes', 'Float64DType.mroDType', 1),
}


@pytest.mark.parametrize('name', REFUSED)
@pytest.mark.parametrize('form', ['legacy', 'zip'])
def test_names_outside_the_allowlist(tmp_path, name, form):
    FORMATS[form](tmp_path / 'file.pth', call(*REFUSED[name]))
    with pytest.raises(MMKDError, match=r'MMKD_ALLOW_UNSAFE_CHECKPOINTS=1') as caught:
        load_checkpoint(tmp_path / 'file.pth', role='teacher checkpoint')
    sentence = str(caught.value)
    assert f'holds {name} besides weights' in sentence
    assert sentence.startswith('The teacher checkpoint ') and sentence.count('\n') == 0


@pytest.mark.parametrize(('owner', 'attribute'), [
    (call('builtins', 'dict'), 'clear'),
    (b'\x8c\x08builtins\x8c\x04dict\x93', '__subclasses__'),
    (b'\x8c\x1fmmengine.logging.history_buffer\x8c\x0dHistoryBuffer\x93', '__init__'),
    (b'\x8c\x1fmmengine.logging.history_buffer\x8c\x0dHistoryBuffer\x93', 'register_statistics'),
    (b'\x8c\x1fmmengine.logging.history_buffer\x8c\x0dHistoryBuffer\x93', '_set_default_statistics'),
])
def test_getattr_reaches_nothing(tmp_path, owner, attribute):
    # Only the methods that the pickle of a HistoryBuffer refers to may be looked up.
    name = b'\x8c' + bytes([len(attribute)]) + attribute.encode()
    write_zip(tmp_path / 'file.pth', b'\x8c\x08builtins\x8c\x07getattr\x93' + owner + name + b'\x86R')
    with pytest.raises(MMKDError, match='getattr'):
        load_checkpoint(tmp_path / 'file.pth')


# They are in other modules with each version of NumPy.
_RECONSTRUCT, _SCALAR, _FROM_BUFFER = (
    value.__reduce_ex__(protocol)[0]
    for value, protocol in ((np.ones(1), 2), (np.float64(1), 2), (np.ones(1), 5)))
ADDRESS = b'\x41' * 8


def attacks() -> dict:
    """Return values that ask NumPy and torch to take an address of the file's choice for an object's."""
    fields = (3, '|', None, ('a', ), {'a': (np.dtype('O'), 0)}, 8, 8, 0)
    dtypes = dict(
        code='O8',
        flags=Made(np.dtype, 'O8', False, True, state=(3, '|', None, None, None, -1, -1, 0)),
        field=Made(np.dtype, 'V8', False, True, state=fields),
        part=Made(np.dtype, 'V8', False, True, state=(3, '|', (np.dtype('O'), (1, )), None, None, 8, 8, 0)),
        hidden=Made(np.dtype, 'f8', False, True, state=fields),
        several=Made(np.dtype, 'O,f4', False, True, state=(3, '|', None, None, None, 16, 1, 0)),
        listed=Made(np.dtype, [('a', 'O')]),
        kind=Made(np.dtype, type(np.dtype('O'))),
        kind_called=Made(type(np.dtype('O'))))
    contents = dict(
        storage=MadeWithKeywords(torch.UntypedStorage, 8, allocator=0x41414141),
        tensor=MadeWithKeywords(torch.Tensor, cdata=0x41414141))
    for name, dtype in dtypes.items():
        contents |= {
            f'{name}-scalar': Made(_SCALAR, dtype, ADDRESS),
            f'{name}-buffer': Made(_FROM_BUFFER, bytearray(ADDRESS), dtype, (1, ), 'C'),
            f'{name}-array': Made(_RECONSTRUCT, np.ndarray, (0, ), b'b', state=(
                1, (1, ), dtype, False, ADDRESS))}
    return contents


# One process for each file: the attack may end it.
LOADING = """
import os, sys
from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError
for path in sys.argv[1:]:
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(os.path.basename(path), {0: 'refused', 1: 'loaded'}.get(status, status), flush=True)
        continue
    try:
        loaded = load_checkpoint(path)
        del loaded
        os._exit(1)
    except MMKDError:
        os._exit(0)
"""


@pytest.mark.slow
def test_addresses_are_never_taken_from_a_file(tmp_path):
    paths = []
    for name, value in attacks().items():
        paths.append(str(tmp_path / name))
        torch.save(dict(state_dict={}, value=value), paths[-1], pickle_protocol=4)
    done = subprocess.run([sys.executable, '-c', LOADING, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == dict.fromkeys(attacks(), 'refused')


def test_an_arrays_memory_is_not_freed_while_a_tensor_shares_it(tmp_path):
    state = pickle.dumps((1, (200, ), np.dtype('f4'), False, bytes(800)), 2)[2:-1] + b'b'
    array = call('numpy.core.multiarray', '_reconstruct', np.ndarray, (0, ), b'b') + b'q\xf0' + state
    tensor = b'\x8c\x05torch\x8c\x06Tensor\x93h\xf0\x85R'
    write_zip(tmp_path / 'file.pth', array + tensor + b'\x86' + b'h\xf0' + state + b'\x86')
    with pytest.raises(MMKDError, match=r'holds torch\.Tensor besides'):
        load_checkpoint(tmp_path / 'file.pth')


@pytest.mark.parametrize(('owner', 'name'), [
    (named('mmengine.logging.history_buffer', 'HistoryBuffer'),
     'mmengine.logging.history_buffer.HistoryBuffer'),
    (named('torch._utils', '_rebuild_tensor'), 'torch._utils._rebuild_tensor'),
    (named('torch', 'FloatStorage'), 'StorageType')])
def test_nothing_that_is_shared_is_changed(tmp_path, owner, name):
    write_zip(tmp_path / 'file.pth', owner + pickle.dumps((None, dict(mean=0)), 2)[2:-1] + b'b')
    with pytest.raises(MMKDError, match=f'a state for {name} besides weights'):
        load_checkpoint(tmp_path / 'file.pth')
    assert callable(HistoryBuffer.mean) and not hasattr(torch._utils._rebuild_tensor, 'mean')


def test_a_file_does_not_change_the_statistics_of_histories(tmp_path):
    history = HistoryBuffer([1.0], [1])
    history.__dict__['_statistics_methods'] = dict(HistoryBuffer._statistics_methods, mean=HistoryBuffer.max)
    torch.save(dict(state_dict={}, history=history), tmp_path / 'file.pth')
    before = dict(HistoryBuffer._statistics_methods)
    try:
        torch.load(tmp_path / 'file.pth', weights_only=False)
        assert HistoryBuffer._statistics_methods['mean'] is HistoryBuffer.max  # so the file was a real attack
    finally:
        HistoryBuffer._statistics_methods.update(before)
    loaded = load_checkpoint(tmp_path / 'file.pth')['history']
    assert HistoryBuffer._statistics_methods == before and loaded.statistics('mean') == 1
    assert set(vars(loaded)) == {'max_length', '_log_history', '_count_history'}


def test_the_byte_order_of_numpys_own_types_is_not_changed(tmp_path):
    dtype = call('numpy', 'dtype', 'f4') + pickle.dumps((3, '>', None, None, None, -1, -1, 0), 2)[2:-1] + b'b'
    write_zip(tmp_path / 'file.pth', b'}' + text('value') + dtype + b's')
    try:
        assert load_checkpoint(tmp_path / 'file.pth')['state_dict']['value'] == np.dtype('>f4')
    finally:
        assert np.dtype('f4').isnative


def test_a_module_in_the_old_format_writes_no_patch(tmp_path, monkeypatch):
    # torch writes the difference between the source code in the file and its own to a file of any name.
    monkeypatch.chdir(tmp_path)
    saved_id = text('module') + named('collections', 'OrderedDict') + text('file') + text('source')
    write_legacy(tmp_path / 'file.pth', b'(' + saved_id + b'tQ')
    with pytest.raises(MMKDError, match='cannot be read'):
        load_checkpoint(tmp_path / 'file.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['file.pth']


def test_opting_in(tmp_path, monkeypatch):
    torch.save(dict(state_dict={}, args=argparse.Namespace(lr=3)), tmp_path / 'file.pth')
    for value in ('0', ''):
        monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', value)
        with pytest.raises(MMKDError, match='argparse.Namespace'):
            load_checkpoint(tmp_path / 'file.pth')
    monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', '1')
    assert load_checkpoint(tmp_path / 'file.pth')['args'].lr == 3
