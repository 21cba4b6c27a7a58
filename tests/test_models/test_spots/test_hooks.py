"""Hooks are removed however their block ends."""
import pytest
import torch
from torch import nn

from mmkd.models.spots import HookPoint, Recorder, module_hooks


def hooked(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU())


def test_hooks_are_called_inside_the_block_only():
    model, calls = network(), []
    forward = [(model[0], lambda module, args, output: calls.append(('output', output)))]
    forward_pre = [(model[1], lambda module, args, kwargs: calls.append(('input', args[0])))]
    with module_hooks(forward, forward_pre):
        model(torch.randn(1, 2))
    model(torch.randn(1, 2))
    (first, output), (second, value) = calls
    assert (first, second) == ('output', 'input') and output is value
    assert not hooked(model)


def test_an_error_inside_the_block_removes_hooks():
    model = network()
    with pytest.raises(RuntimeError, match='shapes'), module_hooks([(model[0], lambda *_: None)]):
        assert hooked(model)
        model(torch.randn(1, 5))
    assert not hooked(model)


def test_an_error_while_hooks_are_registered_removes_them():
    model = network()

    def pairs():
        yield model[0], lambda *_: None
        raise KeyError('gone')

    with pytest.raises(KeyError), module_hooks(pairs()):
        pass
    assert not hooked(model)


@pytest.mark.parametrize('side', ['input', 'output', 'call'])
def test_a_recorder_leaves_no_hooks(side):
    model = network()
    with pytest.raises(RuntimeError, match='shapes'), Recorder(model, dict(x=HookPoint('0', side))):
        model(torch.randn(1, 5))
    assert not hooked(model)
    with pytest.raises(AttributeError), Recorder(model, dict(x=HookPoint('0'), y=HookPoint('2'))):
        pass
    assert not hooked(model)
