"""The improved teacher: a stock checkpoint, the bridge's scores, the teacher's boxes."""
import sys

import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.registry import MODELS

from mmkd.checkpoints import load_checkpoint
from mmkd.errors import MMKDError
from tests.helpers.families import detector
from tests.helpers.tiny import build, distill, load_tool


def run(monkeypatch, tmp_path, family: str, method: dict, teacher=None):
    """Distill a little, write the improved teacher, and return model, stock teacher and file."""
    teacher_cfg = teacher or detector(family, 16)
    torch.manual_seed(1)
    weights = MODELS.build(teacher_cfg).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'teacher.pth')
    cfg = Config(dict(model=distill(detector(family), teacher_cfg, str(tmp_path / 'teacher.pth'), m=method)))
    cfg.dump(tmp_path / 'config.py')
    model = build(cfg.model)
    with torch.no_grad():
        for parameter in model.mmkd.methods.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'epoch_1.pth')
    monkeypatch.setattr(sys, 'argv', [
        'export_teacher.py', str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'improved.pth'), '--config',
        str(tmp_path / 'config.py')])
    load_tool('model_converters/export_teacher.py').main()
    written = load_checkpoint(str(tmp_path / 'improved.pth'))
    stock_cfg = Config.fromstring(written['meta']['cfg'], '.py').model
    stock = MODELS.build(stock_cfg)
    stock.load_state_dict(written['state_dict'])
    return model, stock.eval()


@pytest.mark.parametrize('family', ['faster_rcnn', 'cascade_rcnn', 'retinanet', 'gfl', 'rtmdet'])
def test_bridge_becomes_a_teacher(monkeypatch, tmp_path, family):
    model, stock = run(monkeypatch, tmp_path, family, dict(type='mmkd.SOKD', init='teacher'))
    old = model.mmkd.teacher.model
    heads = model.mmkd.methods['m'].proxies[0].heads.eval()
    with torch.no_grad():
        features = old.extract_feat(torch.randn(1, 3, 256, 256))
        if family in ('faster_rcnn', 'cascade_rcnn'):
            rois = bbox2roi([torch.tensor([[5.0, 5.0, 60.0, 70.0], [20.0, 30.0, 100.0, 90.0]])])
            stages = range(len(heads)) if family == 'cascade_rcnn' else [None]
            for stage in stages:
                args = ([] if stage is None else [stage]) + [features, rois]
                new, before = stock.roi_head._bbox_forward(*args), old.roi_head._bbox_forward(*args)
                assert torch.equal(new['cls_score'], heads[stage or 0](new['bbox_feats'])[0])
                assert not torch.equal(new['cls_score'], before['cls_score'])
                assert torch.equal(new['bbox_pred'], before['bbox_pred'])
        else:
            new, before, trained = stock.bbox_head(features), old.bbox_head(features), heads[0](features)
            for level in range(len(new[0])):
                assert torch.equal(new[0][level], trained[0][level])
                assert not torch.equal(new[0][level], before[0][level])
                assert torch.equal(new[1][level], before[1][level])


def test_tuned_teacher(monkeypatch, tmp_path):
    model, stock = run(monkeypatch, tmp_path, 'retinanet', dict(type='mmkd.KDTuned'))
    tuned = model.mmkd.methods['m'].proxies[0].network.state_dict()
    for name, value in stock.state_dict().items():
        assert torch.equal(value, tuned[name])


@pytest.mark.parametrize('family', ['fcos', 'yolox'])
def test_boxes_that_would_suffer(monkeypatch, tmp_path, family):
    """FCOS reads centerness, and YOLOX boxes, from a tower that the bridge has changed."""
    with pytest.raises(MMKDError, match='would suffer'):
        run(monkeypatch, tmp_path, family, dict(type='mmkd.SOKD', init='teacher'))


@pytest.mark.parametrize(('method', 'obstacle'), [
    (dict(type='mmkd.SOKD', last_stage=True), "boxes depend on its last stage and its neck"),
    (dict(type='mmkd.KDTuned', trainable='adapter'), 'not part of an ordinary teacher'),
    (dict(type='mmkd.SHAKE'), "a head on the student's features"),
    (dict(type='mmkd.DML'), 'not a copy of the teacher')])
def test_proxies_that_no_ordinary_teacher_contains(monkeypatch, tmp_path, method, obstacle):
    with pytest.raises(MMKDError, match=f'There are 0 proxies.*exactly one is needed.*{obstacle}'):
        run(monkeypatch, tmp_path, 'retinanet', method)


@pytest.mark.parametrize('number', [0, 2])
def test_a_teacher_checkpoint_for_no_or_several_teachers(refused, tmp_path, number):
    teacher = dict(config='teacher.py', checkpoint='random')
    Config(dict(model=dict(
        type='mmkd.DetectorDistiller', student=detector('retinanet'), teacher=[teacher] * number,
        methods=dict(m=dict(type='mmkd.DML'))))).dump(tmp_path / 'config.py')
    refused('model_converters/export_teacher.py',
            [tmp_path / 'epoch_1.pth', tmp_path / 'improved.pth', '--config', tmp_path / 'config.py',
             '--teacher-checkpoint', 'teacher.pth'], f'has {number or "no"} teachers')


def test_a_run_without_a_bridge(monkeypatch, tmp_path):
    with pytest.raises(MMKDError, match='There are 0 proxies'):
        run(monkeypatch, tmp_path, 'retinanet', dict(type='mmkd.KD'))
