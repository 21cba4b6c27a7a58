"""Checkpoint files are data: what may be inside them, and what is refused without being run."""
import argparse
import copyreg
import io
import os
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner import load_checkpoint as load_into
from torch import nn

from mmkd.checkpoints import SAFE_PREFIX, load_checkpoint, student_state_dict
from mmkd.errors import MMKDError

# What training leaves in a file


class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, inputs, mode='tensor'):
        outputs = self.norm(self.linear(torch.stack(inputs)))
        return dict(loss=outputs.square().mean()) if mode == 'loss' else outputs


class Nothing(BaseMetric):

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(acc=np.float64(0.5))


@pytest.fixture(scope='module')
def training_checkpoint(tmp_path_factory) -> str:
    """A checkpoint that MMEngine's hook wrote after two epochs, with everything that it can hold."""
    work_dir = tmp_path_factory.mktemp('run')
    loader = dict(batch_size=2, num_workers=0, dataset=[dict(inputs=torch.randn(2)) for _ in range(4)],
                  sampler=dict(type='DefaultSampler', shuffle=False))
    Runner(
        Line(), str(work_dir), train_dataloader=loader, val_dataloader=loader, val_evaluator=[Nothing()],
        train_cfg=dict(by_epoch=True, max_epochs=2), val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=[dict(type='LinearLR', end=2), dict(type='MultiStepLR', milestones=[1])],
        custom_hooks=[dict(type='EMAHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='acc', rule='greater')),
        experiment_name='safe_loading', default_scope='mmengine').train()
    return str(work_dir / 'epoch_2.pth')


def same(one, other) -> bool:
    """Whether two loaded values are equal in type and content, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (one.dtype == other.dtype and one.requires_grad == other.requires_grad
                and torch.equal(one.detach(), other.detach()))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, HistoryBuffer):
        return all(map(same, one.data, other.data))
    if hasattr(one, '__dict__'):
        return same(vars(one), vars(other))
    return one == other


def test_a_training_checkpoint_of_mmengine(training_checkpoint):
    loaded = load_checkpoint(training_checkpoint)
    whole = torch.load(training_checkpoint, weights_only=False)
    assert set(loaded) == set(whole) >= {'state_dict', 'ema_state_dict', 'optimizer', 'message_hub', 'meta'}
    for part in whole:
        assert same(loaded[part], whole[part]), part
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer) and len(history.data[0]) == 4
    assert history.mean() == pytest.approx(history.data[0].mean())
    assert loaded['optimizer']['state'][0]['exp_avg'].abs().sum() > 0


@pytest.mark.parametrize('scheduler', [
    dict(type='ConstantLR'), dict(type='CosineAnnealingLR', T_max=4), dict(type='ExponentialLR', gamma=0.9),
    dict(type='CosineRestartLR', periods=[2, 2], restart_weights=[1, 0.5], eta_min=0), dict(type='LinearLR'),
    dict(type='MultiStepLR', milestones=[2, 3]), dict(type='StepLR', step_size=2), dict(type='PolyLR'),
    dict(type='OneCycleLR', eta_max=0.1, total_steps=4),
    dict(type='OneCycleLR', eta_max=0.1, total_steps=4, anneal_strategy='linear'),
    dict(type='ReduceOnPlateauLR', monitor='acc', rule='greater'),
], ids=lambda scheduler: '-'.join(map(str, scheduler.values())))
def test_state_of_schedulers(tmp_path, scheduler):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    state = PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer)).state_dict()
    torch.save(dict(state_dict={}, param_schedulers=[state]), tmp_path / 'file.pth')
    assert same(load_checkpoint(tmp_path / 'file.pth')['param_schedulers'], [state])


VALUES = {
    'half': torch.arange(3, dtype=torch.half),
    'bfloat16': torch.arange(3, dtype=torch.bfloat16),
    'double': torch.arange(3, dtype=torch.double),
    'bool': torch.tensor([True, False]),
    'int8': torch.arange(3, dtype=torch.int8),
    'uint8': torch.arange(3, dtype=torch.uint8),
    'empty': torch.zeros(0, 4),
    'scalar': torch.tensor(3),
    'transposed': torch.arange(6).view(2, 3).t(),
    'parameter': nn.Parameter(torch.ones(2)),
    'frozen parameter': nn.Parameter(torch.ones(2), requires_grad=False),
    'size': torch.Size([2, 3]),
    'device': torch.device('cpu'),
    'dtype': torch.float16,
    'numpy array': np.arange(6, dtype=np.float32).reshape(2, 3),
    'numpy integers': np.arange(4, dtype=np.uint32),
    'numpy strings': np.array(['a', 'bc']),
    'numpy float': np.float64(0.1),
    'numpy int': np.int64(3),
    'numpy bool': np.bool_(True),
    'numpy complex': np.array([1 + 2j]),
    'numpy bytes': np.array([b'a', b'bc']),
    'numpy string': np.str_('text'),
    'numpy matrix by columns': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'numpy random state': np.random.RandomState(0).get_state(),
    'numpy dtype': np.dtype('float32'),
    'history': HistoryBuffer([1.0, 2.0], [1, 1]),
    'ordered': OrderedDict(a=1),
    'counter': Counter('abca'),
    'defaultdict': defaultdict(list, a=[1]),
    'set': {1, 2},
    'frozenset': frozenset({1}),
    'complex': 1 + 2j,
    'bytes': b'\x00\xff',
    'bytearray': bytearray(b'ab'),
    'slice': slice(1, 5, 2),
    'nested': dict(a=[(1, None, 'b', True, 2.5)]),
}


@pytest.mark.parametrize('name', VALUES)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_plain_values(tmp_path, name, zipped):
    path = tmp_path / 'file.pth'
    torch.save(dict(state_dict={}, value=VALUES[name]), path, _use_new_zipfile_serialization=zipped)
    assert same(load_checkpoint(path)['value'], VALUES[name])


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_arrays_of_every_protocol(tmp_path, protocol):
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3), np.float32)), np.arange(0)]
    arrays[0].flags.writeable = False
    torch.save(dict(state_dict={}, value=arrays), tmp_path / 'file.pth', pickle_protocol=protocol)
    assert same(load_checkpoint(tmp_path / 'file.pth')['value'], arrays)


def test_arrays_of_the_other_byte_order(tmp_path):
    value = [np.arange(3, dtype='>i4'), np.dtype('>i4')]
    torch.save(dict(state_dict={}, value=value), tmp_path / 'file.pth')
    array, dtype = load_checkpoint(tmp_path / 'file.pth')['value']
    assert array.tolist() == [0, 1, 2] and dtype == value[1] != np.dtype('i4')


def test_parameter_with_attributes(tmp_path):
    parameter = nn.Parameter(torch.ones(2))
    parameter.sharing = 'all'
    torch.save(dict(state_dict=dict(a=parameter)), tmp_path / 'file.pth')
    loaded = load_checkpoint(tmp_path / 'file.pth')['state_dict']['a']
    assert isinstance(loaded, nn.Parameter) and loaded.sharing == 'all'


def test_shared_storage_stays_shared(tmp_path):
    weights = torch.zeros(4)
    torch.save(dict(state_dict=dict(a=weights, b=weights[:2])), tmp_path / 'file.pth')
    loaded = load_checkpoint(tmp_path / 'file.pth')['state_dict']
    loaded['a'].fill_(1)
    assert torch.equal(loaded['b'], torch.ones(2))


def test_bare_weights(tmp_path):
    torch.save(OrderedDict(a=torch.ones(2)), tmp_path / 'bare.pth')
    assert torch.equal(load_checkpoint(str(tmp_path / 'bare.pth'))['state_dict']['a'], torch.ones(2))


# What is refused


def call(module: str, name: str, *arguments) -> bytes:
    """Pickle that calls a function when it is loaded, without a head or an end."""
    def string(text):
        return b'\x8c' + bytes([len(text)]) + text.encode()
    return string(module) + string(name) + b'\x93' + pickle.dumps(arguments, 2)[2:-1] + b'R'


def as_pickle(value: bytes) -> bytes:
    """Pickle of ``dict(state_dict=VALUE)``."""
    return b'\x80\x04}' + b'\x8c\x0astate_dict' + value + b's.'


def write_pickle(path, value):
    path.write_bytes(as_pickle(value))


def write_legacy(path, value):
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = io.BytesIO(buffer.getvalue())
    for _ in range(3):  # the magic number, the version and the platform
        pickle.load(head)
    path.write_bytes(buffer.getvalue()[:head.tell()] + as_pickle(value) + pickle.dumps([]))


def write_zip(path, value):
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            target.writestr(name, as_pickle(value) if name.endswith('data.pkl') else source.read(name))


def write_tar(path, value):
    # The format of torch before 0.1.10, which torch.load still reads.
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        for name, content in dict(storages=pickle.dumps(0) + pickle.dumps([]), tensors=pickle.dumps(0),
                                  pickle=as_pickle(value)).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


FORMATS = dict(pickle=write_pickle, legacy=write_legacy, zip=write_zip, tar=write_tar)


@pytest.mark.parametrize('form', FORMATS)
def test_code_is_not_run(tmp_path, monkeypatch, form):
    path, marker = tmp_path / 'attack.pth', tmp_path / 'executed'
    FORMATS[form](path, call('os', 'mkdir', str(marker)))
    with pytest.raises(MMKDError, match=r'os\.mkdir.*MMKD_ALLOW_UNSAFE_CHECKPOINTS=1'):
        load_checkpoint(path)
    assert not marker.exists()

    monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', '1')
    try:
        load_checkpoint(path)
    except MMKDError:  # a bare pickle is no checkpoint, but it has been run by then
        assert form == 'pickle'
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


class Made:
    """Is pickled as a call of a function, with a state for what it gives."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class MadeWithKeywords:
    """Is pickled as an object of another class, made with keywords."""

    def __init__(self, kind, *arguments, **keywords):
        self.reduced = (copyreg.__newobj_ex__, (kind, arguments, keywords))

    def __reduce__(self):
        return self.reduced


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
    with pytest.raises(MMKDError, match='a state for ndarray'):
        load_checkpoint(tmp_path / 'file.pth')


@pytest.mark.parametrize(('owner', 'name'), [
    (b'\x8c\x1fmmengine.logging.history_buffer\x8c\x0dHistoryBuffer\x93', 'type'),
    (b'\x8c\x0ctorch._utils\x8c\x0f_rebuild_tensor\x93', 'function'),
    (call('torch.storage', 'UntypedStorage', 1), 'UntypedStorage')])
def test_nothing_that_is_shared_is_changed(tmp_path, owner, name):
    write_zip(tmp_path / 'file.pth', owner + pickle.dumps((None, dict(mean=0)), 2)[2:-1] + b'b')
    with pytest.raises(MMKDError, match=f'a state for {name} besides weights'):
        load_checkpoint(tmp_path / 'file.pth')
    assert callable(HistoryBuffer.mean) and not hasattr(torch._utils._rebuild_tensor, 'mean')


def test_the_byte_order_of_numpys_own_types_is_not_changed(tmp_path):
    write_zip(tmp_path / 'file.pth', call('numpy', 'dtype', 'f4') + pickle.dumps(
        (3, '>', None, None, None, -1, -1, 0), 2)[2:-1] + b'b')
    try:
        assert load_checkpoint(tmp_path / 'file.pth')['state_dict'] == np.dtype('>f4')
    finally:
        assert np.dtype('f4').isnative


@pytest.mark.parametrize('make', [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 2))],
                         ids=['script', 'trace'])
def test_torchscript(tmp_path, make):
    make(nn.Linear(2, 2)).save(tmp_path / 'program.pth')
    with pytest.raises(MMKDError, match='TorchScript program'):
        load_checkpoint(tmp_path / 'program.pth')


def test_opting_in(tmp_path, monkeypatch):
    torch.save(dict(state_dict={}, args=argparse.Namespace(lr=3)), tmp_path / 'file.pth')
    for value in ('0', ''):
        monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', value)
        with pytest.raises(MMKDError, match='argparse.Namespace'):
            load_checkpoint(tmp_path / 'file.pth')
    monkeypatch.setenv('MMKD_ALLOW_UNSAFE_CHECKPOINTS', '1')
    assert load_checkpoint(tmp_path / 'file.pth')['args'].lr == 3


# Files that are no checkpoints


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


# Through MMEngine


def test_scheme(tmp_path):
    torch.save(dict(state_dict=nn.Linear(2, 1).state_dict()), tmp_path / 'weights.pth')
    source = f'{SAFE_PREFIX}{tmp_path / "weights.pth"}'
    model = nn.Linear(2, 1)
    loaded = load_into(model, source)
    assert torch.equal(model.weight, loaded['state_dict']['weight'])


def test_scheme_refuses_code(tmp_path):
    write_zip(tmp_path / 'attack.pth', call('os', 'mkdir', str(tmp_path / 'executed')))
    with pytest.raises(MMKDError, match='os.mkdir'):
        CheckpointLoader.load_checkpoint(f'{SAFE_PREFIX}{tmp_path / "attack.pth"}', map_location='cpu')
    assert not (tmp_path / 'executed').exists()


def test_scheme_drops_text_that_mmengine_would_run(tmp_path):
    # On resuming, MMEngine's Runner executes meta.config as a Python config; nothing writes it today.
    torch.save(dict(state_dict={}, meta=dict(config='import os', epoch=3)), tmp_path / 'file.pth')
    loaded = CheckpointLoader.load_checkpoint(f'{SAFE_PREFIX}{tmp_path / "file.pth"}', map_location='cpu')
    assert loaded['meta'] == dict(epoch=3)


def test_student_state_dict():
    weights = {
        'module.backbone.a': 1, 'neck.b': 2, 'module.mmkd.methods.shake.c': 3, 'mmkd.methods.shake.d': 4,
        'head.mmkd.e': 5, 'head.module.f': 6, 'mmkdnet.g': 7
    }
    assert student_state_dict(dict(state_dict=weights)) == {
        'backbone.a': 1, 'neck.b': 2, 'head.mmkd.e': 5, 'head.module.f': 6, 'mmkdnet.g': 7}


# Addresses


URL = 'https://example.com/models/teacher-1234.pth?download=true'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub/checkpoints'


def test_download_that_fails(hub, monkeypatch):

    def fail(*_, **__):
        raise urllib.error.URLError('no route to host')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(MMKDError) as caught:
        load_checkpoint(URL, role='teacher checkpoint')
    sentence = str(caught.value)
    for words in ('teacher checkpoint', URL, 'could not be downloaded', 'no route to host', 'local file'):
        assert words in sentence
    assert '\n' not in sentence
    assert not hub.exists() or not os.listdir(hub)


def test_download_once(hub, monkeypatch):
    asked = []

    def download(url, path, *_, **__):
        asked.append(url)
        torch.save(dict(state_dict=dict(a=torch.ones(2))), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    for _ in range(2):
        assert torch.equal(load_checkpoint(URL)['state_dict']['a'], torch.ones(2))
    assert asked == [URL]
    (cached, ) = os.listdir(hub)
    assert cached.endswith('-teacher-1234.pth')


def test_addresses_with_the_same_file_name_are_kept_apart(hub, monkeypatch):
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path, *_, **__: torch.save(
        dict(state_dict=dict(a=torch.tensor(len(url)))), path))
    for url in (URL, URL.replace('models', 'others')):
        assert load_checkpoint(url)['state_dict']['a'] == len(url)
    other = URL.replace('teacher-1234', 'x/teacher-1234')
    assert load_checkpoint(other)['state_dict']['a'] == len(other)
    assert len(os.listdir(hub)) == 3


def test_only_one_process_of_a_machine_downloads(hub, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *_, **__: pytest.fail('downloaded'))
    with pytest.raises(MMKDError, match='could not be downloaded'):
        load_checkpoint(URL)


def test_downloaded_code_is_not_run(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path: write_zip(
        path, call('os', 'mkdir', str(tmp_path / 'executed'))))
    with pytest.raises(MMKDError, match='os.mkdir'):
        load_checkpoint(URL)
    assert not (tmp_path / 'executed').exists()
