"""Copies of heads: which settings go together, what is copied, and whose weights the copy has."""
import pytest
import torch

from mmkd.errors import MMKDError
from mmkd.models.proxies import CopiedHead
from mmkd.models.proxies.heads import _remove_box_branches, build_heads, find_classifiers
from mmkd.models.spots import logit_layout, probe, resolve_spot
from tests.helpers.families import detector
from tests.helpers.tiny import build, distill


def distilled(**settings):
    proxy = dict(type='mmkd.CopiedHead', **settings)
    method = dict(type='mmkd.ProxyDistill', proxy=proxy)
    return build(distill(detector('retinanet'), detector('retinanet', 16), m=method))


@pytest.mark.parametrize(('settings', 'words'), [
    (dict(source='peer'), "`source` of CopiedHead must be '"),
    (dict(init='zero'), "`init` of CopiedHead must be '"),
    (dict(depth='fc_only'), "`depth` of CopiedHead must be '"),
    (dict(init='teacher'), "init='teacher' needs source='teacher'"),
    (dict(source='teacher', depth='last_layer'), "need source='student'"),
    (dict(source='teacher', settings=dict(stacked_convs=1)), "need source='student'"),
    (dict(depth='last_layer', settings=dict(stacked_convs=1)), "need depth='head'"),
])
def test_settings_that_do_not_go_together(settings, words):
    with pytest.raises(MMKDError, match=words):
        CopiedHead(**settings)


@pytest.mark.parametrize('init', ['random', 'teacher'])
def test_a_copy_of_the_teachers_head(init):
    model = distilled(source='teacher', init=init)
    head = model.mmkd.methods.m.proxies[0].heads[0]
    original = model.mmkd.teacher.model.bbox_head.state_dict()
    same = [torch.equal(value, original[name]) for name, value in head.state_dict().items()
            if name.endswith('conv.weight')]
    assert all(same) if init == 'teacher' else not any(same)
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_a_stronger_copy_of_the_students_head():
    model = distilled(settings=dict(stacked_convs=3))
    assert len(model.bbox_head.cls_convs) == 2
    assert len(model.mmkd.methods.m.proxies[0].heads[0].cls_convs) == 3


def test_hooks_are_removed_after_an_error():
    model = build(detector('retinanet'))
    layout = logit_layout(model, 'student')
    head = build_heads(model, detector('retinanet'), layout)[0]
    with pytest.raises(TypeError):
        _remove_box_branches(head, (None, ), layout)
    model.bbox_head.forward = None
    with pytest.raises(TypeError):
        find_classifiers(model, 'student')
    for network in (head, model):
        assert not any(module._forward_hooks for module in network.modules())


def test_inputs_are_recorded_where_the_head_reads_them():
    model = build(detector('faster_rcnn'))
    ((features, ), ) = probe(model, dict(inputs=resolve_spot(model, 'cls_inputs', 'student')))['inputs']
    assert features.shape[1:] == (32, 7, 7)
