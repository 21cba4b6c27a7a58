import pytest
import torch
from torch import nn

from mmkd.errors import MMKDError
from mmkd.models.spots import HookPoint, Recorder, resolve_spot
from tests.helpers.families import detector
from tests.helpers.tiny import build, tiny_config


class Twice(nn.Module):

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(self.inner(x)), x


def test_recorder_keeps_every_call_and_leaves_no_hook():
    model = Twice()
    points = dict(calls=HookPoint('inner'), first=HookPoint('inner', 'input', 0))
    with Recorder(model, points) as recorder:
        output, _ = model(torch.ones(1, 2))
    assert len(recorder['calls']) == 2
    assert recorder['calls'][1] is output
    assert torch.equal(recorder['first'][0], torch.ones(1, 2))
    assert not model.inner._forward_hooks


def test_recorder_removes_hooks_after_an_error():
    model = Twice()
    with pytest.raises(RuntimeError), Recorder(model, dict(calls=HookPoint('inner'))):
        model(torch.ones(1, 3))
    assert not model.inner._forward_hooks


def test_spots_of_a_two_stage_detector():
    model = build(tiny_config().model)
    assert resolve_spot(model, 'cls_logits', 'student') == HookPoint('roi_head.bbox_head', 'output', 0)
    assert resolve_spot(model, 'backbone.layer3', 'student') == HookPoint('backbone.layer3')


def test_a_misspelt_spot_offers_the_nearest():
    model = build(tiny_config().model)
    with pytest.raises(MMKDError, match="student FasterRCNN has no spot 'backbone.layr3'.*'backbone.layer3'"):
        resolve_spot(model, 'backbone.layr3', 'student')


def test_spots_of_stages_need_no_last_output():
    cfg = tiny_config().model
    cfg.backbone.out_indices = (0, 1, 2)
    cfg.neck.in_channels = cfg.neck.in_channels[:3]
    model = build(cfg)
    assert resolve_spot(model, 'stage4', 'student') == HookPoint('backbone.layer4')
    assert resolve_spot(model, 'last_stage', 'student') == HookPoint('backbone.layer4')
    with pytest.raises(MMKDError, match="no spot 'stage5': its backbone has 4 stages"):
        resolve_spot(model, 'stage5', 'student')


def test_a_backbone_whose_stages_are_unknown():
    model = build(detector('yolox'))
    with pytest.raises(MMKDError, match='not known what the stages of its backbone CSPDarknet are'):
        resolve_spot(model, 'stages', 'student')
