"""What may be inside a checkpoint is loaded as it was saved."""
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from torch import nn

from mmkd.checkpoints import load_checkpoint, student_state_dict


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


def test_student_state_dict():
    weights = {
        'module.backbone.a': 1, 'neck.b': 2, 'module.mmkd.methods.shake.c': 3, 'mmkd.methods.shake.d': 4,
        'head.mmkd.e': 5, 'head.module.f': 6, 'mmkdnet.g': 7
    }
    assert student_state_dict(dict(state_dict=weights)) == {
        'backbone.a': 1, 'neck.b': 2, 'head.mmkd.e': 5, 'head.module.f': 6, 'mmkdnet.g': 7}
