import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from tests.helpers.tiny import build, distill, tiny_config

PARAMWISE = dict(custom_keys={'head': dict(lr_mult=0.1)}, norm_decay_mult=0.0)


def wrapper_for(model, distilled: bool, **extra):
    cfg = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01),
               paramwise_cfg=PARAMWISE, clip_grad=dict(max_norm=1.0), **extra)
    if distilled:
        cfg['constructor'] = 'mmkd.DistillOptimWrapperConstructor'
    return build_optim_wrapper(model, cfg)


def settings(wrapper, model) -> dict:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: (group['lr'], group['weight_decay'])
            for group in wrapper.optimizer.param_groups for parameter in group['params']}


def test_the_users_rules_apply_to_the_student_only(teacher_config):
    stock = build(tiny_config().model)
    model = build(distill(tiny_config().model, teacher_config))
    expected = settings(wrapper_for(stock, False), stock)
    found = settings(wrapper_for(model, True, extra=dict(lr=0.03)), model)
    assert {name: value for name, value in found.items() if not name.startswith('mmkd.')} == expected
    of_mmkd = {value for name, value in found.items() if name.startswith('mmkd.')}
    assert of_mmkd == {(0.03, 0.01)}  # the rule for 'head' does not reach the shadow head
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert list(model._modules)[-1] == 'mmkd'


def test_the_student_is_clipped_as_without_distillation(teacher_config):
    stock = build(tiny_config().model)
    model = build(distill(tiny_config().model, teacher_config))
    for network in (stock, model):
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
    one, other = wrapper_for(stock, False), wrapper_for(model, True)
    one._clip_grad()
    other._clip_grad()
    assert len(other.optimizer.param_groups) == len(one.optimizer.param_groups) + 1
    grads = dict(model.named_parameters())
    for name, parameter in stock.named_parameters():
        assert torch.equal(parameter.grad, grads[name].grad), name
    extra = torch.cat([p.grad.flatten() for p in model.mmkd.parameters()])
    assert extra.norm() <= 1.0 + 1e-5


def test_a_proxy_may_have_another_learning_rate(teacher_config):
    methods = dict(kdtuned=dict(type='mmkd.KDTuned', trainable='head'),
                   sokd=dict(type='mmkd.SOKD', proxy_lr_mult=0.1), shake=dict(type='mmkd.SHAKE'))
    model = build(distill(tiny_config().model, teacher_config, **methods))
    found = settings(wrapper_for(model, True, extra=dict(weight_decay=0.0)), model)
    for method, lr in (('kdtuned', 0.0001), ('sokd', 0.01), ('shake', 0.1)):
        of_method = {value for name, value in found.items() if name.startswith(f'mmkd.methods.{method}.')}
        assert [value for value, _ in of_method] == [pytest.approx(lr)], method


def test_without_trainable_extras_nothing_is_added(teacher_config):
    model = build(distill(tiny_config().model, teacher_config, kd=dict(type='mmkd.KD')))
    wrapper = wrapper_for(model, True)
    assert len(wrapper.optimizer.param_groups) == wrapper.number_of_student_groups
    copied = copy.deepcopy(wrapper.optimizer.state_dict())
    wrapper.load_state_dict(copied)
